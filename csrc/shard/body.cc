#include "shard/body.h"

#include <cassert>

namespace stoker {
namespace {

class RawBody final : public ShardBody {
 public:
  explicit RawBody(const File& file) : file_(file) {}

  const std::byte* data() const override { return file_.bytes().data(); }
  const MappedFile* mapping() const override { return &file_; }
  void will_need(Range raw_bytes) const override { file_.will_need(raw_bytes); }

  // No pieces: never called.
  uint32_t piece_at(uint64_t) const override { return assert(false), 0; }
  uint64_t piece_bytes(uint32_t) const override { return assert(false), 0; }
  void load(uint32_t) override { assert(false); }
  void unload(uint32_t) override { assert(false); }

 private:
  MappedFile file_;
};

}  // namespace

std::unique_ptr<ShardBody> map_raw(const File& file) { return std::make_unique<RawBody>(file); }

}  // namespace stoker
