#include "shard/raw_reader.h"

#include <zstd.h>

#include <algorithm>
#include <vector>

#include "base/error.h"

namespace stoker {
namespace {

class UncompressedReader final : public RawReader {
 public:
  explicit UncompressedReader(const File& file) : file_(file) {}

  void read(std::span<std::byte> out) override {
    file_.read_at(offset_, out);
    offset_ += out.size();
  }
  void skip(uint64_t size_bytes) override { offset_ += size_bytes; }

 private:
  const File& file_;
  uint64_t offset_ = 0;
};

class ZstdReader final : public RawReader {
 public:
  explicit ZstdReader(const File& file) : file_(file), stream_(ZSTD_createDStream()), input_(ZSTD_DStreamInSize()) {
    if (!stream_) throw std::bad_alloc();
  }

  void read(std::span<std::byte> out) override {
    ZSTD_outBuffer output{out.data(), out.size(), 0};
    while (output.pos < output.size) {
      const bool at_end = unread_.pos == unread_.size && !refill();
      const size_t before = output.pos;
      const size_t hint = ZSTD_decompressStream(stream_.get(), &output, &unread_);
      if (ZSTD_isError(hint))
        throw corrupt_file(file_.path(),
                           text("is not valid zstd data: ", ZSTD_getErrorName(hint), " near byte ", offset_));
      if (at_end && output.pos == before)  // the decoder held nothing back either
        throw corrupt_file(file_.path(), "ends before all of the shard is decompressed");
    }
  }

  void skip(uint64_t size_bytes) override {
    std::vector<std::byte> scratch(std::min<uint64_t>(size_bytes, ZSTD_DStreamOutSize()));
    for (; size_bytes > 0; size_bytes -= scratch.size()) {
      scratch.resize(std::min<uint64_t>(size_bytes, scratch.size()));
      read(scratch);
    }
  }

 private:
  bool refill() {
    const auto size = std::min<uint64_t>(input_.size(), file_.size_bytes() - offset_);
    if (size == 0) return false;
    file_.read_at(offset_, std::span(input_).first(size));
    offset_ += size;
    unread_ = {input_.data(), size, 0};
    return true;
  }

  struct FreeStream {
    void operator()(ZSTD_DStream* stream) const { ZSTD_freeDStream(stream); }
  };

  const File& file_;
  std::unique_ptr<ZSTD_DStream, FreeStream> stream_;
  std::vector<std::byte> input_;
  ZSTD_inBuffer unread_{nullptr, 0, 0};
  uint64_t offset_ = 0;  // of the file, behind input_
};

}  // namespace

std::unique_ptr<RawReader> read_uncompressed(const File& file) { return std::make_unique<UncompressedReader>(file); }

std::unique_ptr<RawReader> read_zstd(const File& file) { return std::make_unique<ZstdReader>(file); }

}  // namespace stoker
