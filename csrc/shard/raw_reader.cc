#include "shard/raw_reader.h"

#include <zstd.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "base/error.h"

namespace stoker {
namespace {

class UncompressedReader final : public RawReader {
 public:
  explicit UncompressedReader(const File& file) : file_(file) {}

  void read(std::span<std::byte> out) override {
    if (out.empty()) return;  // memcpy refuses null pointers
    if (out.size() < kBlockBytes) {
      if (offset_ < block_offset_ || offset_ + out.size() > block_offset_ + block_.size()) fill_block(out.size());
      std::memcpy(out.data(), block_.data() + (offset_ - block_offset_), out.size());
    } else {
      file_.read_at(offset_, out);
    }
    offset_ += out.size();
  }
  void skip(uint64_t size_bytes) override { offset_ += size_bytes; }
  void expect_end() override {
    if (offset_ != file_.size_bytes())
      throw corrupt_file(file_.path(), text("is ", file_.size_bytes(), " bytes long, not ", offset_));
  }

 private:
  static constexpr size_t kBlockBytes = size_t{1} << 18;

  // Small reads are served from blocks: samples are often read one by one.
  void fill_block(size_t needed) {
    const uint64_t left = offset_ < file_.size_bytes() ? file_.size_bytes() - offset_ : 0;
    block_.resize(std::max<uint64_t>(needed, std::min<uint64_t>(kBlockBytes, left)));  // too much raises in read_at
    block_offset_ = offset_;
    file_.read_at(offset_, block_);
  }

  const File& file_;
  uint64_t offset_ = 0;
  std::vector<std::byte> block_;
  uint64_t block_offset_ = 0;
};

class ZstdReader final : public RawReader {
 public:
  explicit ZstdReader(const File& file) : file_(file), stream_(ZSTD_createDStream()), input_(ZSTD_DStreamInSize()) {
    if (!stream_) throw std::bad_alloc();
  }

  void read(std::span<std::byte> out) override {
    ZSTD_outBuffer output{out.data(), out.size(), 0};
    while (output.pos < output.size)
      if (!decode(output)) throw ended();
  }

  void skip(uint64_t size_bytes) override {
    std::vector<std::byte> scratch(std::min<uint64_t>(size_bytes, ZSTD_DStreamOutSize()));
    for (; size_bytes > 0; size_bytes -= scratch.size()) {
      scratch.resize(std::min<uint64_t>(size_bytes, scratch.size()));
      read(scratch);
    }
  }

  void expect_end() override {
    std::byte more;
    ZSTD_outBuffer output{&more, 1, 0};
    while (decode(output))
      if (output.pos > 0) throw corrupt_file(file_.path(), "holds more when decompressed than index.json says");
    if (!is_between_frames_) throw ended();
  }

 private:
  // Decodes some of what is left; returns false if nothing is.
  bool decode(ZSTD_outBuffer& output) {
    const bool at_end = unread_.pos == unread_.size && !refill();
    if (at_end && is_between_frames_) return false;
    const size_t before = output.pos;
    const size_t left = ZSTD_decompressStream(stream_.get(), &output, &unread_);
    if (ZSTD_isError(left))
      throw corrupt_file(file_.path(),
                         text("is not valid zstd data: ", ZSTD_getErrorName(left), " near byte ", offset_));
    is_between_frames_ = left == 0;
    return !at_end || output.pos > before;  // the decoder may have held something back
  }

  CorruptShardError ended() const { return corrupt_file(file_.path(), "ends before all of the shard is decompressed"); }

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
  bool is_between_frames_ = true;
};

}  // namespace

std::unique_ptr<RawReader> read_uncompressed(const File& file) { return std::make_unique<UncompressedReader>(file); }

std::unique_ptr<RawReader> read_zstd(const File& file) { return std::make_unique<ZstdReader>(file); }

}  // namespace stoker
