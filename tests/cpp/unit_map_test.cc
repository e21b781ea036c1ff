#include "order/unit_map.h"

#include <gtest/gtest.h>

#include <map>
#include <set>

#include "order/key.h"

namespace stoker {
namespace {

bool begins(const BlockChange& change) { return change.kind == BlockChange::Kind::kBegins; }

Order make_order(uint32_t lanes, uint32_t block, bool shuffle, std::vector<uint32_t> blocks_ahead = {}) {
  OrderSpec spec;
  spec.streams = {{"a", {7, 0, 12, 1, 30, 5}}, {"b", {3}}};
  spec.counts = {100, 10};
  spec.lanes = lanes;
  spec.shuffle_block = block;
  spec.shuffle = shuffle;
  spec.blocks_ahead = std::move(blocks_ahead);
  return Order(spec);
}

TEST(UnitMap, TablesStayWithinTheirLimitAndUnitsAreTheSame) {
  const Order order = make_order(5, 4, true);
  UnitMap roomy(order);
  UnitMap tight(order, 2 * 4 * sizeof(uint32_t));
  for (uint64_t ticket = 0; ticket < 200; ++ticket) {
    ASSERT_EQ(tight.unit(0, ticket), roomy.unit(0, ticket));
    ASSERT_EQ(tight.unit(1, ticket % 9), roomy.unit(1, ticket % 9));
    ASSERT_LE(tight.table_bytes(), 2 * 4 * sizeof(uint32_t));
  }
  EXPECT_GT(roomy.table_bytes(), 2 * 4 * sizeof(uint32_t));
}

/// Units of one stream, in lanes' order, with what is announced on the way.
void check_changes(bool shuffle, uint32_t lanes, uint32_t block, size_t table_bytes) {
  const Order order = make_order(lanes, block, shuffle);
  UnitMap map(order, table_bytes);
  std::multiset<std::tuple<uint32_t, uint32_t, uint64_t, uint64_t>> live;
  int blocks = 0;
  int most = 0;
  for (uint64_t ticket = 0; ticket < 400; ++ticket) {
    for (uint32_t stream : {0U, 1U}) {
      if (stream == 1 && ticket % 10 != 0) continue;
      const uint64_t unit = map.unit(stream, stream == 0 ? ticket : ticket / 10);
      for (const BlockChange& change : map.take_changes()) {
        blocks += begins(change) ? 1 : -1;
        for (const ShardRange& range : change.ranges) {
          const std::tuple entry(change.stream, range.shard, range.things.begin, range.things.end);
          if (begins(change)) {
            live.insert(entry);
          } else {
            ASSERT_TRUE(live.count(entry)) << "what ends has begun";
            live.erase(live.find(entry));
          }
        }
      }
      std::vector<ShardRange> pieces;
      order.stream(stream).append_ranges(unit, pieces);
      const bool is_live = std::any_of(live.begin(), live.end(), [&](const auto& entry) {
        return std::get<0>(entry) == stream && std::get<1>(entry) == pieces[0].shard &&
               std::get<2>(entry) <= pieces[0].things.begin && pieces[0].things.end <= std::get<3>(entry);
      });
      ASSERT_TRUE(is_live) << "a unit comes from a block that has begun and not ended";
      most = std::max(most, blocks);
    }
  }
  EXPECT_LE(most, 2 * 2 * static_cast<int>(lanes)) << "two blocks at most of each of two streams and each lane";
}

TEST(UnitMap, EveryUnitComesFromABlockThatIsAnnounced) {
  for (const bool shuffle : {false, true})
    for (const uint32_t lanes : {1U, 3U})
      for (const uint32_t block : {1U, 4U, 20U, 1000U})
        for (const size_t bytes : {size_t{16}, UnitMap::kTableBytes}) check_changes(shuffle, lanes, block, bytes);
}

TEST(UnitMap, TheNextBlockIsAnnouncedBeforeItBegins) {
  const Order order = make_order(1, 10, true);
  UnitMap map(order);
  std::map<uint32_t, std::vector<Range>> announced;
  for (uint64_t ticket = 0; ticket < 150; ++ticket) {
    const uint64_t unit = map.unit(0, ticket);
    std::vector<ShardRange> pieces;
    order.stream(0).append_ranges(unit, pieces);
    if (ticket % 10 == 0 && ticket > 0) {  // a block begins; passes of 55 units end in one of 5
      const bool known = std::any_of(announced[pieces[0].shard].begin(), announced[pieces[0].shard].end(),
                                     [&](const Range& r) { return r.contains(pieces[0].things.begin); });
      EXPECT_TRUE(known) << ticket;
    }
    for (const BlockChange& change : map.take_changes())
      if (begins(change))
        for (const ShardRange& range : change.ranges) announced[range.shard].push_back(range.things);
  }
}

/// A window of blocks over the places that a stream's units come from, as far as it is told at each ticket.
TEST(UnitMap, BlocksBehindTheNextOneAreToldOnceInTime) {
  for (const bool shuffle : {false, true}) {
    const Order order = make_order(1, 10, shuffle, {2, 0});
    UnitMap map(order);
    std::map<uint32_t, std::vector<Range>> told;  // by shard
    std::vector<std::vector<ShardRange>> came;    // by ticket
    const auto is_told = [&](const ShardRange& range) {
      const std::vector<Range>& of_shard = told[range.shard];
      return std::any_of(of_shard.begin(), of_shard.end(),
                         [&](const Range& r) { return r.contains(range.things.begin); });
    };
    UnitMap knowing(order);
    for (uint64_t ticket = 0; ticket < 110; ++ticket)
      order.stream(0).append_ranges(knowing.unit(0, ticket), came.emplace_back());
    size_t num_coming = 0;
    for (uint64_t ticket = 0; ticket < 80; ++ticket) {
      map.unit(0, ticket);
      for (const BlockChange& change : map.take_changes()) {
        num_coming += change.kind == BlockChange::Kind::kComing ? 1 : 0;
        if (change.kind != BlockChange::Kind::kEnds)
          for (const ShardRange& range : change.ranges) told[range.shard].push_back(range.things);
      }
      for (uint64_t ahead = 0; ahead < 25; ++ahead)  // three blocks, of which the last of a pass has 5
        EXPECT_TRUE(is_told(came[ticket + ahead][0])) << ticket << " + " << ahead;
    }
    EXPECT_LE(num_coming, 16U) << "two at first, one at each of the blocks, and what begins a pass";
  }
}

}  // namespace
}  // namespace stoker
