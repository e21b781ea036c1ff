#include "shard/body.h"

#include <cassert>

namespace stoker {
namespace {

class RawBody final : public ShardBody {
 public:
  explicit RawBody(const File& file) : file_(file) {}

  const std::byte* data() const override { return file_.bytes().data(); }
  std::span<const std::byte> mapped() const override { return file_.bytes(); }
  void will_need(uint64_t begin, uint64_t end) const override { file_.will_need(begin, end); }

  // No pieces: never called.
  uint32_t piece_at(uint64_t) const override {
    assert(false);
    return 0;
  }
  uint64_t piece_bytes(uint32_t) const override {
    assert(false);
    return 0;
  }
  void load(uint32_t) override { assert(false); }
  void unload(uint32_t) override { assert(false); }

 private:
  MappedFile file_;
};

}  // namespace

std::unique_ptr<ShardBody> map_raw(const File& file) { return std::make_unique<RawBody>(file); }

}  // namespace stoker
