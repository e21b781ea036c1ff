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
#include <string>
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
  // Memory is given back by pages, so that a piece is one at least; large shards lie on huge pages.
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

/// A range of addresses of which pages are used on first write. One mapping, of which all is advised alike: the kernel
/// would split it otherwise, and a process has few of them.
class ReservedMemory {
 public:
  ReservedMemory(const std::string& path, uint64_t size_bytes) : size_bytes_(size_bytes) {
    if (size_bytes == 0) return;
    const bool is_huge = size_bytes >= kLeastPieceBytes;
    const uint64_t alignment = is_huge ? kLeastPieceBytes : page_size_bytes();
    mapped_bytes_ = (size_bytes + alignment - 1) / alignment * alignment;
    const uint64_t spare = is_huge ? alignment : 0;  // to cut off, so that the rest begins at a huge page
    void* address = ::mmap(nullptr, mapped_bytes_ + spare, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (address == MAP_FAILED) {
      const int code = errno;
      throw SystemError(code, path,
                        text("cannot reserve ", size_bytes, " bytes to decompress this file into: ",
                             std::strerror(code), ". Raise the limit on memory, or on mappings (vm.max_map_count)"));
    }
    data_ = static_cast<std::byte*>(address);
    if (!is_huge) return;
    const uint64_t before = -reinterpret_cast<uintptr_t>(address) % alignment;  // a number, to align it
    if (before > 0) ::munmap(data_, before);
    data_ += before;
    if (before < spare) ::munmap(data_ + mapped_bytes_, spare - before);
    ::madvise(data_, mapped_bytes_, MADV_HUGEPAGE);  // advice: without it everything works, slower
  }
  ReservedMemory(const ReservedMemory&) = delete;
  ReservedMemory& operator=(const ReservedMemory&) = delete;
  ~ReservedMemory() {
    if (data_ != nullptr) ::munmap(data_, mapped_bytes_);
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
  const uint64_t size_bytes_;
  uint64_t mapped_bytes_ = 0;
  std::byte* data_ = nullptr;
};

/// Opens a shard's file again. Another one in its place is not what its head was read from.
File open_again(const std::string& path, const FileIdentity& identity) {
  File file(path);
  if (!(file.identity() == identity)) throw corrupt_file(path, "is another file than it was when it was opened");
  return file;
}

class DecodedBody final : public ShardBody {
 public:
  DecodedBody(const File& file, uint64_t raw_bytes)
      : path_(file.path()), identity_(file.identity()), memory_(path_, raw_bytes) {
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
    const MappedFile mapping(open_again(path_, identity_));
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

  const std::string path_;
  const FileIdentity identity_;
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

  /// Gives the file its name, and opens it for reading.
  File commit() {
    if (::fdatasync(fd_) != 0) throw failure();  // on the disk before it has its name: it is trusted by its size later
    File written(temporary_path_);               // now: under its name it may be removed by another process
    if (::rename(temporary_path_.c_str(), path_.c_str()) != 0) throw failure();
    ::close(std::exchange(fd_, -1));
    return written;
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
      : path_(file.path()), identity_(file.identity()), raw_path_(std::move(raw_path)), raw_bytes_(raw_bytes) {}

  const std::byte* data() const override { return raw_ ? raw_->data() : nullptr; }
  const MappedFile* mapping() const override { return raw_ ? raw_->mapping() : nullptr; }
  uint32_t num_pieces() const override { return 1; }  // of no memory of ours: the page cache decides

  void load(uint32_t) override {
    if (raw_) return;
    const File compressed = open_again(path_, identity_);
    const std::unique_ptr<RawReader> reader = read_zstd(compressed);
    AtomicFile expanded(raw_path_);
    std::vector<std::byte> buffer(std::min<uint64_t>(raw_bytes_, uint64_t{1} << 20));
    for (uint64_t left = raw_bytes_; left > 0; left -= buffer.size()) {
      buffer.resize(std::min<uint64_t>(left, buffer.size()));
      reader->read(buffer);
      expanded.write(buffer);
    }
    reader->expect_end();
    raw_ = map_raw(expanded.commit());
  }

 private:
  const std::string path_;
  const FileIdentity identity_;
  const std::string raw_path_;
  const uint64_t raw_bytes_;
  std::unique_ptr<ShardBody> raw_;  // once loaded
};

}  // namespace

std::unique_ptr<ShardBody> decode_zstd(const File& file, uint64_t raw_bytes) {
  return std::make_unique<DecodedBody>(file, raw_bytes);
}

std::unique_ptr<ShardBody> expand_zstd(const File& file, uint64_t raw_bytes, std::string raw_path) {
  try {
    const File raw(raw_path);
    if (raw.size_bytes() == raw_bytes) return map_raw(raw);
  } catch (const SystemError& error) {
    if (error.code != ENOENT) throw;  // else it is not there yet, or has been removed as corrupt
  }
  return std::make_unique<ExpandedBody>(file, raw_bytes, std::move(raw_path));
}

}  // namespace stoker
