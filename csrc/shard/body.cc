#include "shard/body.h"

namespace stoker {
namespace {

class RawBody final : public ShardBody {
 public:
  explicit RawBody(const File& file) : file_(file) {}

  const std::byte* data() const override { return file_.bytes().data(); }
  const MappedFile* mapping() const override { return &file_; }
  void will_need(Range raw_bytes) const override { file_.will_need(raw_bytes); }

 private:
  MappedFile file_;
};

class NoBody final : public ShardBody {
 public:
  const std::byte* data() const override { return nullptr; }
};

}  // namespace

std::unique_ptr<ShardBody> no_body() { return std::make_unique<NoBody>(); }

std::unique_ptr<ShardBody> map_raw(const File& file) { return std::make_unique<RawBody>(file); }

}  // namespace stoker
