#include "layout/best_fit.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "layout/foundry_packer.h"
#include "order/key.h"

namespace stoker {
namespace {

TEST(NumberSet, FindsTheSmallestNumberFromAnyOn) {
  Rng rng(key("number set"));
  for (const uint32_t limit : {1U, 63U, 64U, 65U, 4096U, 4097U, 300'000U}) {
    NumberSet numbers(limit);
    std::set<uint32_t> want;
    for (int step = 0; step < 3000; ++step) {
      const auto number = static_cast<uint32_t>(rng.below(limit));
      if (rng.below(2) == 0) {
        numbers.insert(number);
        want.insert(number);
      } else {
        numbers.erase(number);
        want.erase(number);
      }
      const auto from = static_cast<uint32_t>(rng.below(limit + 1));
      const auto found = want.lower_bound(from);
      ASSERT_EQ(numbers.at_least(from), found == want.end() ? limit : *found) << "limit " << limit;
    }
  }
}

/// The same by looking at all rows: of those with the least room that is enough, the one that came to it last.
std::vector<uint32_t> naive(const std::vector<uint32_t>& sizes, uint32_t seq_len, uint32_t max_pieces) {
  std::vector<uint32_t> order(sizes.size());
  for (uint32_t i = 0; i < order.size(); ++i) order[i] = i;
  std::stable_sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) { return sizes[a] > sizes[b]; });
  struct Row {
    uint32_t room;
    uint32_t pieces;
    uint32_t came;  // to its room: number of the step
  };
  std::vector<Row> rows;
  std::vector<uint32_t> row_of(sizes.size());
  uint32_t step = 0;
  for (const uint32_t piece : order) {
    size_t best = rows.size();
    for (size_t r = 0; r < rows.size(); ++r) {
      if (rows[r].room < sizes[piece] || (max_pieces > 0 && rows[r].pieces == max_pieces)) continue;
      if (best == rows.size() || rows[r].room < rows[best].room ||
          (rows[r].room == rows[best].room && rows[r].came > rows[best].came))
        best = r;
    }
    if (best == rows.size()) rows.push_back({seq_len, 0, 0});
    rows[best].room -= sizes[piece];
    ++rows[best].pieces;
    rows[best].came = ++step;
    row_of[piece] = static_cast<uint32_t>(best);
  }
  return row_of;
}

TEST(BestFit, RowsAreThoseOfTheDefinitionTimeAndAgain) {
  Rng rng(key("best fit"));
  for (int trial = 0; trial < 60; ++trial) {
    const auto seq_len = static_cast<uint32_t>(1 + rng.below(trial % 2 == 0 ? 30 : 5000));
    const auto max_pieces = static_cast<uint32_t>(rng.below(5));
    BestFit best_fit(seq_len, max_pieces);
    for (int window = 0; window < 4; ++window) {  // nothing of one window is left in the next
      std::vector<uint32_t> sizes(rng.below(200));
      for (uint32_t& size : sizes) size = static_cast<uint32_t>(1 + rng.below(1 + rng.below(seq_len)));
      const BestFit::Result packed = best_fit.pack(sizes);
      ASSERT_EQ(packed.row_of, naive(sizes, seq_len, max_pieces)) << "trial " << trial;
      const std::vector<uint32_t>& sorted = packed.sorted;
      ASSERT_EQ(sorted.size(), sizes.size());
      for (size_t i = 1; i < sorted.size(); ++i) ASSERT_GE(sizes[sorted[i - 1]], sizes[sorted[i]]);
    }
  }
}

TEST(FoundryPacker, GivesTheReferencesRows) {
  const auto pack = [](FoundryPacker& packer, std::vector<uint32_t> sizes, uint64_t first) {
    std::vector<FoundryPacker::Example> examples;
    for (const uint32_t size : sizes) examples.push_back({first++, size});
    std::vector<std::vector<uint64_t>> rows;
    for (const FoundryPacker::Bin& bin : packer.pack(examples)) rows.push_back(bin.examples);
    return rows;
  };
  using Rows = std::vector<std::vector<uint64_t>>;
  FoundryPacker packer(3, 10, std::nullopt);
  EXPECT_EQ(pack(packer, {7, 2, 5, 5, 3, 9, 1, 4}, 0), (Rows{{2, 3}, {0, 4}, {5, 6}}));
  EXPECT_EQ(pack(packer, {6, 6, 2, 2, 1, 8, 3}, 300), (Rows{{305, 302}, {7, 1, 306}, {300, 303}}));
  ASSERT_EQ(packer.leftovers().size(), 1U);
  EXPECT_EQ(packer.leftovers()[0].size, 7U);
  EXPECT_EQ(pack(packer, {1}, 600), (Rows{{301, 304}, {600}}));
  EXPECT_TRUE(packer.leftovers().empty());
}

}  // namespace
}  // namespace stoker
