// Memory for batches that is used again once the last view of it is gone.
#pragma once

#include <cstddef>
#include <memory>
#include <mutex>
#include <vector>

namespace stoker {

/// Thread-safe. Buffers may outlive the pool.
class BufferPool {
  struct Shelf;

 public:
  static constexpr size_t kAlignment = 64;  // a cache line

  /// At most `max_kept` buffers are kept for later.
  BufferPool(size_t size_bytes, size_t max_kept);

  /// Move-only handle; its memory returns to the pool with it.
  class Buffer {
   public:
    Buffer(Buffer&&) noexcept = default;
    Buffer& operator=(Buffer&&) = delete;
    ~Buffer();
    std::byte* data() const { return memory_.get(); }
    size_t size_bytes() const;

   private:
    friend class BufferPool;
    struct Free {
      void operator()(std::byte* memory) const;
    };
    using Memory = std::unique_ptr<std::byte[], Free>;
    Buffer(Memory memory, std::shared_ptr<Shelf> shelf) : memory_(std::move(memory)), shelf_(std::move(shelf)) {}
    Memory memory_;
    std::shared_ptr<Shelf> shelf_;
    friend struct Shelf;
  };

  Buffer take();

 private:
  struct Shelf {
    const size_t size_bytes;
    const size_t max_kept;
    std::mutex mutex;
    std::vector<Buffer::Memory> kept;  // guarded by mutex
  };
  std::shared_ptr<Shelf> shelf_;
};

}  // namespace stoker
