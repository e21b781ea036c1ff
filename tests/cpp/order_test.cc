// Properties of the order on random specifications; what it must equal exactly is golden_test's business.
#include "order/order.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <set>

#include "base/error.h"
#include "order/cursor.h"
#include "order/dealing.h"
#include "order/key.h"
#include "order/unit_map.h"

namespace stoker {
namespace {

constexpr int kTrials = 300;

OrderSpec random_spec(Rng& rng) {
  OrderSpec spec;
  const uint64_t num_streams = 1 + rng.below(4);
  spec.unit = rng.below(2) == 0 ? 1 : 1 + rng.below(6);
  do {
    spec.streams.clear();
    spec.counts.clear();
    for (uint64_t s = 0; s < num_streams; ++s) {
      StreamSizes sizes{"s" + std::to_string(s), {1 + rng.below(6)}};
      for (uint64_t k = rng.below(8); k > 0; --k) sizes.shard_sizes.push_back(rng.below(8));
      const uint64_t total = std::accumulate(sizes.shard_sizes.begin(), sizes.shard_sizes.end(), uint64_t{0});
      spec.counts.push_back(rng.below(3 * total + 1));
      spec.streams.push_back(sizes);
    }
  } while (spec.epoch_units() == 0);
  spec.seed = mix64(rng.below(UINT64_MAX));
  spec.lanes = static_cast<uint32_t>(1 + rng.below(11));
  spec.global_batch = 6 * (1 + rng.below(4));
  spec.drop_last = rng.below(2) == 0;
  spec.shuffle = rng.below(4) != 0;
  spec.shuffle_block = static_cast<uint32_t>(1 + rng.below(9));
  return spec;
}

uint64_t epoch_rows(const OrderSpec& spec) {
  return spec.drop_last ? spec.epoch_units() : ceil_div(spec.epoch_units(), spec.global_batch) * spec.global_batch;
}

TEST(Order, EveryEpochHoldsTheCountsAndEveryPassEachUnitOnce) {
  Rng rng(key("every epoch"));
  for (int trial = 0; trial < kTrials; ++trial) {
    const OrderSpec spec = random_spec(rng);
    const Order order(spec);
    OrderCursor cursor(order);
    std::vector<std::multiset<uint64_t>> units(spec.counts.size());
    const uint64_t epochs = 3;
    for (uint64_t row = 0; row < epochs * epoch_rows(spec); ++row)
      if (const auto unit = cursor.row(row)) units[unit->stream].insert(unit->index);
    for (uint32_t s = 0; s < units.size(); ++s) {
      ASSERT_EQ(units[s].size(), epochs * spec.counts[s]);
      for (const uint64_t unit : units[s]) ASSERT_EQ(units[s].count(unit), 1U);
      // Whole passes are there as a whole.
      uint64_t pass = 0;
      for (uint64_t left = epochs * spec.counts[s]; left > 0; ++pass) {
        const Range whole = order.stream(s).pass_units(pass);
        if (whole.size() > left) break;
        for (uint64_t unit = whole.begin; unit < whole.end; ++unit) ASSERT_EQ(units[s].count(unit), 1U);
        left -= whole.size();
      }
    }
  }
}

TEST(Order, JumpingGivesTheRowsOfGoingOn) {
  Rng rng(key("jumping"));
  for (int trial = 0; trial < kTrials; ++trial) {
    const OrderSpec spec = random_spec(rng);
    const Order order(spec);
    OrderCursor walking(order);
    OrderCursor jumping(order);
    std::vector<std::pair<uint32_t, uint64_t>> rows;
    const auto as_pair = [](const std::optional<Unit>& u) {
      return u ? std::pair(u->stream, u->index) : std::pair(UINT32_MAX, uint64_t{0});
    };
    for (uint64_t row = 0; row < 2 * epoch_rows(spec); ++row) rows.push_back(as_pair(walking.row(row)));
    for (int i = 0; i < 40; ++i) {
      const uint64_t row = rng.below(rows.size());
      ASSERT_EQ(as_pair(jumping.row(row)), rows[row]);
    }
  }
}

TEST(Order, PiecesOfAUnitFollowTheLine) {
  Rng rng(key("pieces"));
  for (int trial = 0; trial < kTrials; ++trial) {
    const OrderSpec spec = random_spec(rng);
    const Order order(spec);
    std::vector<ShardRange> one_by_one;
    std::vector<ShardRange> together;
    for (uint64_t unit = 0; unit < 20; ++unit) order.stream(0).append_ranges(unit, one_by_one);
    order.stream(0).append_ranges(Range{0, 20}, together);
    const auto flat = [](const std::vector<ShardRange>& pieces) {
      std::vector<std::pair<uint32_t, uint64_t>> out;
      for (const ShardRange& piece : pieces)
        for (uint64_t thing = piece.things.begin; thing < piece.things.end; ++thing)
          out.emplace_back(piece.shard, thing);
      return out;
    };
    ASSERT_EQ(flat(one_by_one), flat(together));
    ASSERT_EQ(flat(together).size(), 20 * spec.unit);
  }
}

TEST(Order, RefusesWhatCannotBeDelivered) {
  OrderSpec spec;
  spec.streams = {{"a", {3}}, {"b", {0}}};
  spec.counts = {1, 1};
  EXPECT_THROW(Order{spec}, ArgumentError);
  spec.counts = {0, 0};
  EXPECT_THROW(Order{spec}, ArgumentError);
  spec.counts = {1};
  EXPECT_THROW(Order{spec}, ArgumentError);
  spec.counts = {uint64_t{1} << 40, 1};
  EXPECT_THROW(Order{spec}, ArgumentError);
  spec.counts = {UINT64_MAX, 0};
  EXPECT_THROW(Order{spec}, ArgumentError);
  spec.counts = {1, 0};
  EXPECT_NO_THROW(Order{spec});
  spec.lanes = 0;
  EXPECT_THROW(Order{spec}, ArgumentError);
}

TEST(Stride, EveryPrefixKeepsTheWeights) {
  Rng rng(key("prefix"));
  for (int trial = 0; trial < kTrials; ++trial) {
    const uint64_t num_streams = 1 + rng.below(8);
    std::vector<uint64_t> weights;
    std::vector<uint64_t> phases;
    for (uint64_t s = 0; s < num_streams; ++s) {
      weights.push_back(1 + rng.below(1000));
      phases.push_back(rng.below(uint64_t{1} << 32));
    }
    const uint64_t sum = std::accumulate(weights.begin(), weights.end(), uint64_t{0});
    const Stride stride(weights, phases);
    StrideCursor cursor(stride, 0);
    std::vector<uint64_t> drawn(num_streams);
    for (uint64_t n = 1; n <= 200; ++n, cursor.next()) {
      const StrideCursor sought(stride, n - 1);
      ASSERT_EQ(sought.draw().stream, cursor.draw().stream);
      ASSERT_EQ(sought.draw().index, cursor.draw().index);
      ASSERT_EQ(cursor.draw().index, drawn[cursor.draw().stream]++);
      for (uint64_t s = 0; s < num_streams; ++s) {
        const double off =
            static_cast<double>(drawn[s]) - static_cast<double>(n * weights[s]) / static_cast<double>(sum);
        ASSERT_LE(std::abs(off), 1 + static_cast<double>(weights[s] * num_streams) / static_cast<double>(sum));
      }
    }
  }
}

TEST(Permutation, IsABijection) {
  for (const uint32_t size : {0U, 1U, 2U, 255U, 256U, 257U, 65535U, 65536U, 65537U}) {
    std::vector<uint32_t> items = permutation(key("bijection", size), size);
    std::sort(items.begin(), items.end());
    for (uint32_t i = 0; i < size; ++i) ASSERT_EQ(items[i], i);
  }
}

TEST(Dealing, SharesAreWhatCountingGives) {
  for (uint64_t lanes = 1; lanes < 7; ++lanes)
    for (uint64_t begin = 0; begin < 12; ++begin)
      for (uint64_t end = begin; end < 25; ++end)
        for (uint64_t lane = 0; lane < lanes; ++lane) {
          uint64_t count = 0;
          for (uint64_t k = begin; k < end; ++k) count += k % lanes == lane;
          ASSERT_EQ(dealt(begin, end, lanes, lane), count);
        }
}

}  // namespace
}  // namespace stoker
