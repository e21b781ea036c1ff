#include "layout/listed_layout.h"

#include <gtest/gtest.h>

#include <map>
#include <set>

#include "base/error.h"
#include "order/key.h"

namespace stoker {
namespace {

using Ids = std::vector<uint64_t>;

/// Two streams of some shards, and lengths by a formula. Global batches have 4 rows, of one rank.
class ListedLayoutTest : public testing::Test, private SampleLengths {
 protected:
  ListedLayoutTest() {
    spec_.kind = LayoutKind::kPad;
    spec_.seq_len = 20;
    spec_.overflow.assign(2, Overflow::kTruncate);
    spec_.packing = LayoutSpec::Packing::kFoundry;
    spec_.window_rows = 4;
    order_.streams = {{"a", {30, 7, 19}}, {"b", {40, 5}}};
    order_.counts = {3, 2};
    order_.global_batch = 4;
  }

  std::unique_ptr<Layout> layout(const LayoutStart& start = {}) {
    made_order_ = std::make_unique<Order>(order_);
    list_ = std::make_shared<SampleList>(std::vector<SampleList::Stream>{{0, {30, 7, 19}}, {1, {40, 5}}}, 100);
    return make_layout(spec_, *made_order_, *this, start, list_);
  }

  /// The rows of the next batch: each segment's sample, numbered over all, and its tokens.
  static std::vector<std::vector<std::pair<uint64_t, uint32_t>>> batch(Layout& layout, uint64_t index) {
    Rows rows(2);
    for (uint64_t r = 4 * index; r < 4 * index + 4; ++r) layout.append_row(r, rows);
    return numbered(rows);
  }
  static std::vector<std::vector<std::pair<uint64_t, uint32_t>>> numbered(const Rows& rows) {
    static constexpr uint64_t kBegins[2][3] = {{0, 30, 37}, {56, 96, 0}};
    std::vector<std::vector<std::pair<uint64_t, uint32_t>>> out(rows.size());
    for (uint32_t i = 0; i < rows.size(); ++i)
      for (const Segment& s : rows.row(i)) out[i].emplace_back(kBegins[s.stream][s.shard] + s.sample, s.size());
    return out;
  }
  uint32_t length(uint64_t number) {
    const auto [stream, shard, sample] = list_->place(number);
    const std::span<const uint32_t> ends = token_ends(stream, shard);
    return ends[sample] - (sample == 0 ? 0 : ends[sample - 1]);
  }

  /// Chunks of `num_batches` batches of `size` samples, drawn.
  SampleList::Chunk draw(Rng& rng, uint32_t num_batches, uint32_t size) {
    SampleList::Chunk chunk;
    for (uint32_t b = 0; b < num_batches; ++b) {
      for (uint32_t i = 0; i < size; ++i) chunk.samples.push_back(rng.below(101));
      chunk.batch_ends.push_back(static_cast<uint32_t>(chunk.samples.size()));
    }
    return chunk;
  }

  std::span<const uint32_t> token_ends(uint32_t stream, uint32_t shard) override {
    std::vector<uint32_t>& ends = ends_[{stream, shard}];
    if (ends.empty()) {
      uint32_t end = 0;
      for (uint64_t x = 0; x < 50; ++x)
        ends.push_back(end += static_cast<uint32_t>(key("n", uint64_t{stream}, uint64_t{shard}, x) % 30));
    }
    return ends;
  }
  std::string path(uint32_t stream, uint32_t shard) override { return text(stream, "/", shard); }

  LayoutSpec spec_;
  OrderSpec order_;
  std::shared_ptr<SampleList> list_;

 private:
  std::unique_ptr<Order> made_order_;
  std::map<std::pair<uint32_t, uint32_t>, std::vector<uint32_t>> ends_;
};

TEST_F(ListedLayoutTest, PadPutsASampleInARow) {
  const std::unique_ptr<Layout> rows = layout();
  list_->push({{5, 60, 5, 100, 36, 37}, {4, 6}});
  list_->push({{0, 1, 2, 3}, {4}});
  const auto cut = [&](uint64_t n) { return std::vector{std::pair(n, std::min(length(n), 20U))}; };
  EXPECT_EQ(batch(*rows, 0), (std::vector{cut(5), cut(60), cut(5), cut(100)}));
  auto want = std::vector{cut(36), cut(37), {}, {}};
  EXPECT_EQ(batch(*rows, 1), want);  // a short batch: the other rows are empty
  EXPECT_EQ(batch(*rows, 2), (std::vector{cut(0), cut(1), cut(2), cut(3)}));
  EXPECT_EQ(rows->hints(12), nullptr);
}

TEST_F(ListedLayoutTest, CountsAreOfUnitsAndOfWhatWasCut) {
  const std::unique_ptr<Layout> rows = layout();
  uint64_t tokens = 0;
  uint64_t cut = 0;
  uint64_t num_cut = 0;
  uint64_t num_empty = 0;
  Rows out(2);
  for (uint64_t n = 0; n < 56; ++n) {
    tokens += std::min(length(n), 20U);
    cut += length(n) - std::min(length(n), 20U);
    num_cut += length(n) > 20;
    num_empty += length(n) == 0;
    list_->push({{n}, {1}});
    rows->append_row(4 * n, out);
  }
  const StreamCounts& counts = out.counts()[0];
  EXPECT_EQ(counts.units, 56U);
  EXPECT_EQ(counts.tokens, tokens);
  EXPECT_EQ(counts.truncated_tokens, cut);
  EXPECT_EQ(counts.truncated_samples, num_cut);
  EXPECT_EQ(counts.empty_samples, num_empty);
  EXPECT_GT(num_cut * num_empty, 0U);
  EXPECT_EQ(out.counts()[1].units, 0U);
}

TEST_F(ListedLayoutTest, MoreSamplesThanRowsAreAnError) {
  const std::unique_ptr<Layout> rows = layout();
  list_->push({{1, 2, 3, 4, 5}, {5}});
  list_->push({{1}, {1}});
  batch(*rows, 0);
  EXPECT_THROW(batch(*rows, 1), ArgumentError);
}

TEST_F(ListedLayoutTest, WhatIsTooLongIsAnErrorWhereOverflowSaysSo) {
  spec_.overflow[0] = Overflow::kError;
  const std::unique_ptr<Layout> rows = layout();
  uint64_t too_long = 0;
  while (length(too_long) <= 20) ++too_long;
  list_->push({{too_long}, {1}});
  EXPECT_THROW(batch(*rows, 0), ArgumentError);
}

TEST_F(ListedLayoutTest, PackersTakeTurnsAndKeepWhatTheyLeaveOver) {
  spec_.kind = LayoutKind::kPack;
  Rng rng(1);
  for (const uint32_t num_packers : {1U, 2U, 3U}) {
    for (const std::optional<uint32_t> kept : {std::optional<uint32_t>(), std::optional<uint32_t>(1)}) {
      spec_.num_packers = num_packers;
      spec_.max_leftover_bins = kept;
      const std::unique_ptr<Layout> rows = layout();
      std::vector<FoundryPacker> packers(num_packers, FoundryPacker(4, 20, kept));
      uint64_t packed = 0;
      for (uint64_t b = 0; b < 60; ++packed) {
        SampleList::Chunk chunk = draw(rng, 1 + static_cast<uint32_t>(rng.below(5)), 9);
        chunk.first_packer = static_cast<uint32_t>(b % num_packers);
        list_->push(chunk);
        for (uint32_t i = 0; i < chunk.batch_ends.size(); ++i, ++b) {
          std::vector<FoundryPacker::Example> examples;
          for (uint32_t at = chunk.batch_ends[i] - 9; at < chunk.batch_ends[i]; ++at)
            if (const uint32_t size = std::min(length(chunk.samples[at]), 20U); size > 0)
              examples.push_back({chunk.samples[at], size});
          std::vector<std::vector<std::pair<uint64_t, uint32_t>>> want(4);
          const auto bins = packers[b % num_packers].pack(examples);
          for (size_t row = 0; row < bins.size(); ++row)
            for (const uint64_t n : bins[row].examples) want[row].emplace_back(n, std::min(length(n), 20U));
          ASSERT_EQ(batch(*rows, b), want) << "batch " << b;
          const auto hints = rows->hints(4 * b + 4);
          ASSERT_EQ(hints->size(), num_packers);
          for (uint32_t p = 0; p < num_packers; ++p) {
            std::vector<Ids> left;
            for (const FoundryPacker::Bin& bin : packers[p].leftovers()) left.push_back(bin.examples);
            EXPECT_EQ((*hints)[p].lane, p);
            EXPECT_EQ((*hints)[p].leftovers, left);
          }
        }
      }
    }
  }
}

TEST_F(ListedLayoutTest, HintsGoOnWithTheSameRows) {
  spec_.kind = LayoutKind::kPack;
  spec_.num_packers = 2;
  Rng rng(2);
  std::vector<SampleList::Chunk> chunks;
  for (uint32_t b = 0; b < 30; ++b) {
    chunks.push_back(draw(rng, 1, 9));
    chunks.back().first_packer = b % 2;
  }
  const std::unique_ptr<Layout> whole = layout();
  for (const SampleList::Chunk& chunk : chunks) list_->push(chunk);
  std::vector<std::vector<std::vector<std::pair<uint64_t, uint32_t>>>> want;
  std::vector<std::shared_ptr<const LaneHints>> hints;
  for (uint64_t b = 0; b < 30; ++b) {
    hints.push_back(whole->hints(4 * b));
    want.push_back(batch(*whole, b));
  }
  for (uint64_t from = 0; from < 30; from += 3) {
    const std::unique_ptr<Layout> second = layout({4 * from, hints[from]});
    for (uint64_t b = from; b < 30; ++b) list_->push(chunks[b]);
    for (uint64_t b = from; b < 30; ++b) ASSERT_EQ(batch(*second, b), want[b]) << "from batch " << from;
  }
}

TEST_F(ListedLayoutTest, DamagedHintsAreRefused) {
  spec_.kind = LayoutKind::kPack;
  const LaneHints wrong[] = {{{1, 0, 0, {}}}, {{0, 0, 0, {{101}}}}, {{0, 0, 0, {{}}}}, {{0, 0, 0, {Ids(30, 0)}}}};
  for (const LaneHints& hints : wrong) {
    const std::unique_ptr<Layout> rows = layout({0, std::make_shared<LaneHints>(hints)});
    list_->push({{1}, {1}});
    EXPECT_THROW(batch(*rows, 0), ArgumentError);
  }
}

TEST_F(ListedLayoutTest, WhatIsForgottenIsCountedAsDropped) {
  spec_.kind = LayoutKind::kPack;
  const std::unique_ptr<Layout> rows = layout();
  Rng rng(3);
  SampleList::Chunk first = draw(rng, 1, 40);
  list_->push(first);
  list_->push({{}, {0}, 0, true});
  Rows out(2);
  for (uint64_t r = 0; r < 8; ++r) rows->append_row(r, out);
  uint64_t samples = 0;
  uint64_t placed = 0;
  for (const StreamCounts& counts : out.counts()) samples += counts.dropped_samples + counts.empty_samples;
  for (const auto& row : numbered(out)) placed += row.size();
  EXPECT_EQ(samples + placed, 40U);
  EXPECT_EQ(out.counts()[0].units + out.counts()[1].units, 40U);
  EXPECT_TRUE(rows->hints(8)->front().leftovers.empty());
}

TEST_F(ListedLayoutTest, ShardsAreTakenAheadAndLetGo) {
  order_.blocks_ahead = {1, 0};
  const std::unique_ptr<Layout> rows = layout();
  Rng rng(4);
  std::vector<SampleList::Chunk> chunks;
  for (uint32_t i = 0; i < 20; ++i) chunks.push_back(draw(rng, 3, 2));
  for (const SampleList::Chunk& chunk : chunks) list_->push(chunk);
  const auto shards_of = [&](const SampleList::Chunk& chunk) {
    std::set<std::pair<uint32_t, uint32_t>> out;
    for (const uint64_t n : chunk.samples) out.insert({list_->place(n).stream, list_->place(n).shard});
    return out;
  };
  std::map<std::pair<uint32_t, uint32_t>, int> held;
  std::map<std::pair<uint32_t, uint32_t>, std::set<uint64_t>> told;
  std::set<std::pair<uint32_t, uint32_t>> coming;
  for (uint64_t b = 0; b < 60; ++b) {
    batch(*rows, b);
    for (const BlockChange& change : rows->take_changes()) {
      for (const ShardRange& range : change.ranges) {
        const std::pair id(change.stream, range.shard);
        switch (change.kind) {
          case BlockChange::Kind::kBegins:
            if (held[id]++ == 0 || range.things.size() > 0) {
              EXPECT_GT(range.things.size(), 0U);
              for (uint64_t n = range.things.begin; n < range.things.end; ++n) told[id].insert(n);
            }
            break;
          case BlockChange::Kind::kEnds:
            if (--held[id] > 0) break;
            held.erase(id);
            told.erase(id);
            break;
          case BlockChange::Kind::kComing:
            coming.insert(id);
        }
      }
    }
    const uint64_t at = b / 3;
    std::map<std::pair<uint32_t, uint32_t>, int> want;
    for (uint64_t i = at; i < std::min<uint64_t>(at + 2, 20); ++i)
      for (const auto& id : shards_of(chunks[i])) ++want[id];
    EXPECT_EQ(held, want) << "batch " << b;
    for (uint64_t i = at; i < std::min<uint64_t>(at + 2, 20); ++i)
      for (const uint64_t n : chunks[i].samples) {
        const auto [stream, shard, sample] = list_->place(n);
        EXPECT_EQ(told.at({stream, shard}).count(sample), 1U);
      }
    if (at + 2 < 20) {
      for (const auto& id : shards_of(chunks[at + 2])) EXPECT_EQ(coming.count(id), 1U);
    }
  }
}

TEST_F(ListedLayoutTest, OtherLayoutsAreRefused) {
  spec_.kind = LayoutKind::kConcat;
  EXPECT_THROW(layout(), ArgumentError);
  spec_.kind = LayoutKind::kPack;
  spec_.packing = LayoutSpec::Packing::kBestFit;
  EXPECT_THROW(layout(), ArgumentError);
}

}  // namespace
}  // namespace stoker
