// Compares order and layout with tests/model/golden.json, which the reference model wrote.
#include <gtest/gtest.h>

#include <fstream>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <vector>

#include "base/error.h"
#include "layout/layout.h"
#include "order/key.h"
#include "order/order.h"
#include "order/stride.h"

namespace stoker {
namespace {

using nlohmann::json;
using Lengths = std::vector<std::vector<std::vector<uint32_t>>>;  // [stream][shard][sample]

const json& golden() {
  static const json document = json::parse(std::ifstream(STOKER_GOLDEN_JSON));
  return document;
}

/// Lengths from memory.
class GivenLengths final : public SampleLengths {
 public:
  explicit GivenLengths(const Lengths& lengths) {
    for (const auto& shards : lengths) {
      auto& stream = ends_.emplace_back();
      for (const auto& samples : shards) {
        auto& ends = stream.emplace_back();
        uint32_t end = 0;
        for (const uint32_t length : samples) ends.push_back(end += length);
      }
    }
  }
  std::span<const uint32_t> token_ends(uint32_t stream, uint32_t shard) override { return ends_[stream][shard]; }
  std::string path(uint32_t stream, uint32_t shard) override { return text(stream, "/", shard); }

 private:
  Lengths ends_;
};

OrderSpec order_spec(const json& c) {
  OrderSpec spec;
  const bool concat = c["layout"] == "concat";
  const auto lengths = c["lengths"].get<Lengths>();
  for (size_t s = 0; s < lengths.size(); ++s) {
    StreamSizes sizes{c["streams"][s].get<std::string>(), {}};
    for (const auto& samples : lengths[s]) {
      uint64_t size = samples.size();
      if (concat) {
        size = 0;
        for (const uint32_t length : samples) size += length;
      }
      sizes.shard_sizes.push_back(size);
    }
    spec.streams.push_back(sizes);
  }
  spec.counts = c["counts"].get<std::vector<uint64_t>>();
  spec.seed = c["seed"].get<uint64_t>();
  spec.lanes = c["lanes"].get<uint32_t>();
  spec.global_batch = c["batch"].get<uint64_t>();
  spec.finite = c["layout"] != "pack";
  spec.unit = concat ? c["seq_len"].get<uint64_t>() : 1;
  spec.drop_last = c["drop_last"].get<bool>();
  spec.shuffle = c["shuffle"].get<bool>();
  spec.shuffle_block = c["shuffle_block"].get<uint32_t>();
  return spec;
}

LayoutSpec layout_spec(const json& c) {
  static const std::map<std::string, LayoutKind> kinds = {
      {"pad", LayoutKind::kPad}, {"concat", LayoutKind::kConcat}, {"pack", LayoutKind::kPack}};
  static const std::map<std::string, Overflow> overflows = {
      {"truncate", Overflow::kTruncate}, {"split", Overflow::kSplit}, {"drop", Overflow::kDrop}};
  LayoutSpec spec;
  spec.kind = kinds.at(c["layout"]);
  spec.seq_len = c["seq_len"];
  spec.overflow.assign(c["streams"].size(), overflows.at(c.value("overflow", "truncate")));
  spec.pack_window = c.value("pack_window", 4096U);
  spec.window_rows = c.value("window_rows", 512U);
  spec.groups.assign(c["streams"].size(), 0);
  return spec;
}

json to_json(std::span<const Segment> row) {
  json out = json::array();
  for (const Segment& s : row) out.push_back({s.stream, s.shard, s.sample, s.token_begin, s.token_end});
  return out;
}

TEST(Golden, Mix64KeysAndDrawsAreTheModels) {
  const json& p = golden()["primitives"];
  for (const json& pair : p["mix64"]) EXPECT_EQ(mix64(pair[0].get<uint64_t>()), pair[1].get<uint64_t>());
  for (const json& pair : p["key"]) {
    KeyBuilder builder;
    for (const json& part : pair[0])
      part.is_string() ? builder.add(std::string_view(part.get_ref<const std::string&>()))
                       : builder.add(part.get<uint64_t>());
    EXPECT_EQ(builder.value(), pair[1].get<uint64_t>()) << pair;
  }
  Rng rng(p["below"]["key"].get<uint64_t>());
  for (size_t i = 0; i < p["below"]["n"].size(); ++i)
    EXPECT_EQ(rng.below(p["below"]["n"][i].get<uint64_t>()), p["below"]["got"][i].get<uint64_t>());
  EXPECT_EQ(permutation(p["permutation"]["key"].get<uint64_t>(), p["permutation"]["n"].get<uint32_t>()),
            p["permutation"]["got"].get<std::vector<uint32_t>>());
}

TEST(Golden, StrideSeeksAreTheModels) {
  const json& p = golden()["primitives"]["stride"];
  const Stride stride(p["weights"].get<std::vector<uint64_t>>(), p["phases"].get<std::vector<uint64_t>>());
  for (const json& at : p["at"]) {
    const Stride::Position position = stride.seek(at[0].get<uint64_t>());
    EXPECT_EQ(position.next_stream, at[1].get<uint32_t>());
    EXPECT_EQ(position.draws[position.next_stream], at[2].get<uint64_t>());
    const StrideCursor cursor(stride, at[0].get<uint64_t>());
    EXPECT_EQ(cursor.draw().stream, at[1].get<uint32_t>());
    EXPECT_EQ(cursor.draw().index, at[2].get<uint64_t>());
  }
}

TEST(Golden, PhasesAreTheModels) {
  const json& p = golden()["primitives"]["phases"];
  OrderSpec spec;
  for (const json& name : p["names"]) spec.streams.push_back({name.get<std::string>(), {1}});
  spec.counts = p["rates"].get<std::vector<uint64_t>>();
  spec.seed = p["seed"].get<uint64_t>();
  spec.lanes = p["lanes"].get<uint32_t>();
  spec.finite = false;
  const Order order(spec);
  for (size_t i = 0; i < p["lane"].size(); ++i) {
    const Stride stride = order.stride({p["lane"][i].get<uint32_t>(), 0});
    for (uint32_t s = 0; s < spec.streams.size(); ++s)
      EXPECT_EQ(static_cast<uint64_t>(stride.due_numerator(s, 0)), p["got"][i][s].get<uint64_t>());
  }
}

class GoldenCase : public testing::TestWithParam<size_t> {};

TEST_P(GoldenCase, RowsAreTheModels) {
  const json& c = golden()["cases"][GetParam()];
  const Order order(order_spec(c));
  GivenLengths lengths(c["lengths"].get<Lengths>());
  const LayoutSpec spec = layout_spec(c);
  const json& want = c["rows"];
  const std::unique_ptr<Layout> layout = make_layout(spec, order, lengths);
  Rows rows(order.num_streams());
  for (uint32_t r = 0; r < want.size(); ++r) {
    layout->append_row(r, rows);
    ASSERT_EQ(to_json(rows.row(r)), want[r])
        << "row " << r << " of " << c["layout"] << " with streams " << c["streams"];
  }
  // Jumps find the same rows as going on does.
  const std::unique_ptr<Layout> jumping = make_layout(spec, order, lengths);
  for (uint32_t i = 0; i < want.size(); ++i) {
    const uint64_t r = (i * 73) % want.size();
    Rows one(order.num_streams());
    jumping->append_row(r, one);
    ASSERT_EQ(to_json(one.row(0)), want[r]);
  }
}

INSTANTIATE_TEST_SUITE_P(All, GoldenCase, testing::Range(size_t{0}, golden()["cases"].size()));

}  // namespace
}  // namespace stoker
