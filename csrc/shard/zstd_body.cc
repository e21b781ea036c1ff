#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zstd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <new>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/fault_guard.h"
#include "shard/body.h"
#include "shard/raw_reader.h"

namespace stoker {
namespace {

CorruptShardError corrupt(const std::string& path, const std::string& what) {
  return CorruptShardError(path, CorruptShardError::kWholeShard,
                           text(path, " ", what, ". Fetch or write the shard again."));
}

/// One or more whole frames that are decoded together.
struct Frames {
  uint64_t offset;      // in the file
  uint64_t size_bytes;  // in the file
  uint64_t raw_offset;
  uint64_t raw_bytes;
};

// Splits a file at its frames. All frames are one piece if one of them does not state its size: the frames' sizes are
// then known only together, from the index.
std::vector<Frames> find_frames(const std::string& path, std::span<const std::byte> file, uint64_t raw_bytes) {
  std::vector<Frames> pieces;
  uint64_t raw_offset = 0;
  for (uint64_t offset = 0; offset < file.size();) {
    const std::span<const std::byte> rest = file.subspan(offset);
    const size_t size = ZSTD_findFrameCompressedSize(rest.data(), rest.size());
    if (ZSTD_isError(size))
      throw corrupt(path, text("has no whole zstd frame at byte ", offset, ": ", ZSTD_getErrorName(size)));
    const unsigned long long raw = ZSTD_getFrameContentSize(rest.data(), rest.size());
    if (raw == ZSTD_CONTENTSIZE_UNKNOWN) return {{0, file.size(), 0, raw_bytes}};
    if (raw == ZSTD_CONTENTSIZE_ERROR || raw > raw_bytes - raw_offset)
      throw corrupt(path, text("has a zstd frame at byte ", offset, " that claims more than the ", raw_bytes,
                               " bytes that index.json states for the whole shard"));
    if (raw > 0) pieces.push_back({offset, size, raw_offset, raw});
    raw_offset += raw;
    offset += size;
  }
  if (raw_offset != raw_bytes)
    throw corrupt(path, text("holds ", raw_offset, " bytes when decompressed but index.json says ", raw_bytes));
  return pieces;
}

ZSTD_DCtx* thread_decoder() {
  struct Free {
    void operator()(ZSTD_DCtx* context) const { ZSTD_freeDCtx(context); }
  };
  thread_local const std::unique_ptr<ZSTD_DCtx, Free> decoder(ZSTD_createDCtx());
  if (!decoder) throw std::bad_alloc();
  return decoder.get();
}

/// A range of addresses of which pages are used on first write. Move-only by being a member of one body.
class ReservedMemory {
 public:
  explicit ReservedMemory(uint64_t size_bytes) : size_bytes_(size_bytes) {
    if (size_bytes == 0) return;
    void* address =
        ::mmap(nullptr, size_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (address == MAP_FAILED) throw std::bad_alloc();
    data_ = static_cast<std::byte*>(address);
  }
  ReservedMemory(const ReservedMemory&) = delete;
  ReservedMemory& operator=(const ReservedMemory&) = delete;
  ~ReservedMemory() {
    if (data_ != nullptr) ::munmap(data_, size_bytes_);
  }

  std::byte* data() const { return data_; }

  /// Gives back the pages that lie wholly in [begin, end).
  void release(uint64_t begin, uint64_t end) {
    const uint64_t page = page_size_bytes();
    begin = (begin + page - 1) / page * page;
    if (end < size_bytes_) end -= end % page;
    if (begin < end) ::madvise(data_ + begin, end - begin, MADV_DONTNEED);
  }

 private:
  uint64_t size_bytes_;
  std::byte* data_ = nullptr;
};

class DecodedBody final : public ShardBody {
 public:
  DecodedBody(const File& file, uint64_t raw_bytes) : path_(file.path()), file_(file), memory_(raw_bytes) {
    const FaultGuard guard({file_.bytes()});
    std::vector<Frames> frames = find_frames(path_, file_.bytes(), raw_bytes);
    if (guard.faulted() != FaultGuard::kNone) throw was_cut();
    frames_ = std::move(frames);
  }

  const std::byte* data() const override { return memory_.data(); }
  uint32_t num_pieces() const override { return static_cast<uint32_t>(frames_.size()); }
  uint64_t piece_bytes(uint32_t piece) const override { return frames_[piece].raw_bytes; }

  uint32_t piece_at(uint64_t raw_offset) const override {
    const auto after = std::upper_bound(frames_.begin(), frames_.end(), raw_offset,
                                        [](uint64_t offset, const Frames& f) { return offset < f.raw_offset; });
    return static_cast<uint32_t>(after - frames_.begin() - 1);
  }

  void load(uint32_t piece) override {
    const Frames& frames = frames_[piece];
    const FaultGuard guard({file_.bytes()});
    const size_t got = ZSTD_decompressDCtx(thread_decoder(), memory_.data() + frames.raw_offset, frames.raw_bytes,
                                           file_.bytes().data() + frames.offset, frames.size_bytes);
    if (guard.faulted() != FaultGuard::kNone) throw was_cut();
    if (ZSTD_isError(got))
      throw corrupt(path_, text("has a corrupt zstd frame at byte ", frames.offset, ": ", ZSTD_getErrorName(got)));
    if (got != frames.raw_bytes)
      throw corrupt(path_, text("holds ", got, " bytes when decompressed at byte ", frames.offset, " but ",
                                frames.raw_bytes, " were expected"));
  }

  void unload(uint32_t piece) override {
    const Frames& frames = frames_[piece];
    memory_.release(frames.raw_offset, frames.raw_offset + frames.raw_bytes);
  }

  void will_need(uint64_t begin, uint64_t end) const override {
    if (begin >= end) return;
    const Frames& last = frames_[piece_at(end - 1)];
    file_.will_need(frames_[piece_at(begin)].offset, last.offset + last.size_bytes);
  }

 private:
  CorruptShardError was_cut() const { return corrupt(path_, "was cut or can't be read while it is in use"); }

  std::string path_;
  MappedFile file_;
  ReservedMemory memory_;
  std::vector<Frames> frames_;
};

/// A file that appears under its name only when it is whole.
class AtomicFile {
 public:
  explicit AtomicFile(std::string path) : path_(std::move(path)), temporary_path_(path_ + ".XXXXXX") {
    std::error_code error;  // a failure shows when the file is created
    std::filesystem::create_directories(std::filesystem::path(path_).parent_path(), error);
    fd_ = ::mkostemp(temporary_path_.data(), O_CLOEXEC);
    if (fd_ < 0) throw failure();
  }
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;
  ~AtomicFile() {
    if (fd_ < 0) return;
    ::close(fd_);
    ::unlink(temporary_path_.c_str());
  }

  void write(std::span<const std::byte> bytes) {
    while (!bytes.empty()) {
      const ssize_t wrote = ::write(fd_, bytes.data(), bytes.size());
      if (wrote < 0 && errno == EINTR) continue;
      if (wrote < 0) throw failure();
      bytes = bytes.subspan(static_cast<size_t>(wrote));
    }
  }

  void commit() {
    if (::fchmod(fd_, 0644) != 0 || ::rename(temporary_path_.c_str(), path_.c_str()) != 0) throw failure();
    ::close(std::exchange(fd_, -1));
  }

 private:
  SystemError failure() const {
    const int code = errno;
    return SystemError(code, path_,
                       text("cannot expand a shard into this file: ", std::strerror(code),
                            ". Make room there, set cache_dir to another disk, or raise cache_memory"));
  }

  std::string path_;
  std::string temporary_path_;
  int fd_ = -1;
};

class ExpandedBody final : public ShardBody {
 public:
  ExpandedBody(const File& file, uint64_t raw_bytes, std::string raw_path)
      : path_(file.path()), raw_path_(std::move(raw_path)), raw_bytes_(raw_bytes) {}

  const std::byte* data() const override { return mapped().data(); }
  std::span<const std::byte> mapped() const override { return raw_ ? raw_->mapped() : std::span<const std::byte>(); }
  uint32_t num_pieces() const override { return 1; }
  uint32_t piece_at(uint64_t) const override { return 0; }
  uint64_t piece_bytes(uint32_t) const override { return 0; }
  void unload(uint32_t) override {}  // the page cache decides
  void will_need(uint64_t, uint64_t) const override {}

  void load(uint32_t) override {
    if (raw_) return;
    const File compressed(path_);
    const std::unique_ptr<RawReader> reader = read_zstd(compressed);
    AtomicFile expanded(raw_path_);
    std::vector<std::byte> buffer(std::min<uint64_t>(raw_bytes_, uint64_t{1} << 20));
    for (uint64_t left = raw_bytes_; left > 0; left -= buffer.size()) {
      buffer.resize(std::min<uint64_t>(left, buffer.size()));
      reader->read(buffer);
      expanded.write(buffer);
    }
    expanded.commit();
    raw_ = map_raw(File(raw_path_));
    if (raw_->mapped().size() != raw_bytes_) throw corrupt(raw_path_, "has another size than index.json says");
  }

 private:
  std::string path_;
  std::string raw_path_;
  uint64_t raw_bytes_;
  std::unique_ptr<ShardBody> raw_;  // once loaded
};

}  // namespace

std::unique_ptr<ShardBody> decode_zstd(const File& file, uint64_t raw_bytes) {
  return std::make_unique<DecodedBody>(file, raw_bytes);
}

std::unique_ptr<ShardBody> expand_zstd(const File& file, uint64_t raw_bytes, std::string raw_path) {
  std::error_code error;  // absent or unreadable: expand
  if (std::filesystem::file_size(raw_path, error) == raw_bytes && !error) return map_raw(File(raw_path));
  return std::make_unique<ExpandedBody>(file, raw_bytes, std::move(raw_path));
}

}  // namespace stoker
