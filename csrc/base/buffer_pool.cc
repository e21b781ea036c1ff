#include "base/buffer_pool.h"

#include <new>
#include <utility>

namespace stoker {

void BufferPool::Buffer::Free::operator()(std::byte* memory) const {
  ::operator delete[](memory, std::align_val_t{kAlignment});
}

BufferPool::BufferPool(size_t size_bytes, size_t max_kept) : shelf_(new Shelf{size_bytes, max_kept, {}, {}}) {
  shelf_->kept.reserve(max_kept);  // so that putting a buffer back never fails
}

BufferPool::Buffer::~Buffer() {
  if (!memory_) return;  // moved from
  const std::lock_guard lock(shelf_->mutex);
  if (shelf_->kept.size() < shelf_->max_kept) shelf_->kept.push_back(std::move(memory_));
}

size_t BufferPool::Buffer::size_bytes() const { return shelf_->size_bytes; }

BufferPool::Buffer BufferPool::take() {
  {
    const std::lock_guard lock(shelf_->mutex);
    if (!shelf_->kept.empty()) {
      Buffer::Memory memory = std::move(shelf_->kept.back());
      shelf_->kept.pop_back();
      return Buffer(std::move(memory), shelf_);
    }
  }
  auto* memory = static_cast<std::byte*>(::operator new[](shelf_->size_bytes, std::align_val_t{kAlignment}));
  return Buffer(Buffer::Memory(memory), shelf_);
}

}  // namespace stoker
