#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zstd.h>
#include <zstd_errors.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <new>
#include <random>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/fault_guard.h"
#include "shard/body.h"
#include "shard/raw_reader.h"

namespace stoker {
namespace {

/// Whole frames that are decoded together.
struct Frames {
  Range file;  // where they are in the file
  Range raw;   // what they hold
};

// Splits a file at its frames. All frames are one piece if one of them does not state its size: the frames' sizes are
// then known only together, from the index.
std::vector<Frames> find_frames(const std::string& path, std::span<const std::byte> file, uint64_t raw_bytes) {
  // Less than a page could never be given back, and a huge page costs a five-hundredth of the faults of its pages.
  const uint64_t least_bytes = raw_bytes >= kLeastPieceBytes ? kLeastPieceBytes : page_size_bytes();
  std::vector<Frames> pieces;
  uint64_t raw_offset = 0;
  for (uint64_t offset = 0; offset < file.size();) {
    const std::span<const std::byte> rest = file.subspan(offset);
    const size_t size = ZSTD_findFrameCompressedSize(rest.data(), rest.size());
    if (ZSTD_isError(size))
      throw corrupt_file(path, text("has no whole zstd frame at byte ", offset, ": ", ZSTD_getErrorName(size)));
    const unsigned long long raw = ZSTD_getFrameContentSize(rest.data(), rest.size());
    if (raw == ZSTD_CONTENTSIZE_UNKNOWN) return {{{0, file.size()}, {0, raw_bytes}}};
    if (raw == ZSTD_CONTENTSIZE_ERROR || raw > raw_bytes - raw_offset)
      throw corrupt_file(path, text("has a zstd frame at byte ", offset, " that claims more than the ", raw_bytes,
                                    " bytes that index.json states for the whole shard"));
    if (pieces.empty() || pieces.back().raw.size() >= least_bytes)
      pieces.push_back({{offset, offset}, {raw_offset, raw_offset}});
    offset = pieces.back().file.end += size;
    raw_offset = pieces.back().raw.end += raw;
  }
  if (raw_offset != raw_bytes)
    throw corrupt_file(path, text("holds ", raw_offset, " bytes when decompressed but index.json says ", raw_bytes));
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
    reserved_bytes_ = size_bytes >= kLeastPieceBytes ? size_bytes + kLeastPieceBytes : size_bytes;  // room to align
    void* address =
        ::mmap(nullptr, reserved_bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (address == MAP_FAILED) throw std::bad_alloc();
    reserved_ = data_ = static_cast<std::byte*>(address);
    if (reserved_bytes_ == size_bytes) return;
    data_ += -reinterpret_cast<uintptr_t>(address) % kLeastPieceBytes;
    ::madvise(data_, size_bytes, MADV_HUGEPAGE);  // advice: without it everything works, slower
  }
  ReservedMemory(const ReservedMemory&) = delete;
  ReservedMemory& operator=(const ReservedMemory&) = delete;
  ~ReservedMemory() {
    if (reserved_ != nullptr) ::munmap(reserved_, reserved_bytes_);
  }

  std::byte* data() const { return data_; }

  /// Gives back the pages that lie wholly in a range.
  void release(Range bytes) {
    const uint64_t page = page_size_bytes();
    bytes.begin = (bytes.begin + page - 1) / page * page;
    if (bytes.end < size_bytes_) bytes.end -= bytes.end % page;
    if (bytes.begin < bytes.end) ::madvise(data_ + bytes.begin, bytes.size(), MADV_DONTNEED);
  }

 private:
  uint64_t size_bytes_;
  uint64_t reserved_bytes_ = 0;
  std::byte* reserved_ = nullptr;
  std::byte* data_ = nullptr;  // inside of it, at a huge page
};

class DecodedBody final : public ShardBody {
 public:
  DecodedBody(const File& file, uint64_t raw_bytes)
      : path_(file.path()), file_bytes_(file.size_bytes()), memory_(raw_bytes) {
    read([&](std::span<const std::byte> bytes) { pieces_ = find_frames(path_, bytes, raw_bytes); });
  }

  const std::byte* data() const override { return memory_.data(); }
  uint32_t num_pieces() const override { return static_cast<uint32_t>(pieces_.size()); }
  uint64_t piece_bytes(uint32_t piece) const override { return pieces_[piece].raw.size(); }

  uint32_t piece_at(uint64_t raw_offset) const override {
    const auto after = std::upper_bound(pieces_.begin(), pieces_.end(), raw_offset,
                                        [](uint64_t offset, const Frames& f) { return offset < f.raw.begin; });
    return static_cast<uint32_t>(after - pieces_.begin() - 1);
  }

  void load(uint32_t piece) override {
    const Frames& frames = pieces_[piece];
    read([&](std::span<const std::byte> bytes) {
      const size_t got = ZSTD_decompressDCtx(thread_decoder(), memory_.data() + frames.raw.begin, frames.raw.size(),
                                             bytes.data() + frames.file.begin, frames.file.size());
      if (ZSTD_getErrorCode(got) == ZSTD_error_dstSize_tooSmall)
        throw corrupt_file(
            path_, text("holds more when decompressed than the ", frames.raw.size(), " bytes that index.json states"));
      if (ZSTD_isError(got))
        throw corrupt_file(
            path_, text("has a corrupt zstd frame from byte ", frames.file.begin, " on: ", ZSTD_getErrorName(got)));
      if (got != frames.raw.size())
        throw corrupt_file(path_, text("holds ", got, " bytes when decompressed from byte ", frames.file.begin,
                                       " on, but ", frames.raw.size(), " were expected"));
    });
  }

  void unload(uint32_t piece) override { memory_.release(pieces_[piece].raw); }

  void will_need(Range raw_bytes) const override {
    if (raw_bytes.size() == 0) return;
    const Range first = pieces_[piece_at(raw_bytes.begin)].file;
    const Range last = pieces_[piece_at(raw_bytes.end - 1)].file;
    try {
      File(path_).will_need({first.begin, last.end});
    } catch (const SystemError&) {
      // Loading the piece will say so.
    }
  }

 private:
  // Maps the file for as long as `action` reads it: a shard that is open costs one mapping, its memory.
  template <typename Action>
  void read(Action action) const {
    const File file(path_);
    if (file.size_bytes() != file_bytes_)
      throw corrupt_file(path_, text("is ", file.size_bytes(), " bytes long but index.json says ", file_bytes_));
    const MappedFile mapping(file);
    const FaultGuard guard({&mapping});
    const auto check_cut = [&] {
      if (guard.faulted() != nullptr) throw corrupt_file(path_, kWasCut);
    };
    try {
      action(mapping.bytes());
    } catch (const CorruptShardError&) {
      check_cut();  // zeros in place of lost pages are no zstd
      throw;
    }
    check_cut();
  }

  std::string path_;
  uint64_t file_bytes_;
  ReservedMemory memory_;
  std::vector<Frames> pieces_;
};

/// A file that appears under its name only when it is whole.
class AtomicFile {
 public:
  explicit AtomicFile(std::string path) : path_(std::move(path)) {
    std::error_code error;  // a failure shows when the file is created
    std::filesystem::create_directories(std::filesystem::path(path_).parent_path(), error);
    std::random_device random;
    do {
      temporary_path_ = text(path_, ".", std::hex, random());
      fd_ = ::open(temporary_path_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);  // less the umask
    } while (fd_ < 0 && errno == EEXIST);
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
    // On the disk before it has its name: it is trusted by its size later.
    if (::fdatasync(fd_) != 0 || ::rename(temporary_path_.c_str(), path_.c_str()) != 0) throw failure();
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

  const std::byte* data() const override { return raw_ ? raw_->data() : nullptr; }
  const MappedFile* mapping() const override { return raw_ ? raw_->mapping() : nullptr; }
  uint32_t num_pieces() const override { return 1; }
  uint32_t piece_at(uint64_t) const override { return 0; }
  uint64_t piece_bytes(uint32_t) const override { return 0; }
  void unload(uint32_t) override {}  // the page cache decides
  void will_need(Range) const override {}

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
    reader->expect_end();
    expanded.commit();
    const File raw(raw_path_);
    if (raw.size_bytes() != raw_bytes_) throw corrupt_file(raw_path_, "has another size than index.json says");
    raw_ = map_raw(raw);
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
  std::error_code error;
  if (std::filesystem::exists(raw_path, error)) {
    const File raw(raw_path);
    if (raw.size_bytes() == raw_bytes) return map_raw(raw);
  }
  return std::make_unique<ExpandedBody>(file, raw_bytes, std::move(raw_path));
}

}  // namespace stoker
