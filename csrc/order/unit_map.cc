#include "order/unit_map.h"

#include <algorithm>
#include <utility>

#include "order/key.h"

namespace stoker {
namespace {

Range block_places(const Visit& visit, uint64_t index, uint64_t block_size) {
  const uint64_t begin = std::min(index * block_size, visit.size());
  return {begin, std::min(begin + block_size, visit.size())};
}

size_t bytes(const std::vector<uint32_t>& table) { return table.capacity() * sizeof(uint32_t); }

}  // namespace

uint64_t UnitMap::unit(uint32_t stream, uint64_t ticket) {
  const StreamOrder& order = order_.stream(stream);
  const StreamOrder::Options& options = order.options();
  if (!options.shuffle) {
    Block& block = block_at(stream, 0);
    const uint64_t index = ticket / options.shuffle_block;
    if (!block.is_entered || block.index != index) enter_unshuffled(block, stream, index);
    return ticket;
  }

  const Pass& pass = pass_of(stream, ticket);
  if (order.is_one_block(pass.units)) {
    // All lanes share the table of a one-block pass; there are two, since some lanes are in the next pass already.
    Block& block = block_at(stream, uint64_t{options.lanes} + pass.index % 2);
    if (!block.is_entered || block.pass.index != pass.index) enter_whole(block, stream, pass);
    return pass.units.begin + block.table[ticket - pass.units.begin];
  }
  const auto slot = static_cast<uint32_t>(ticket % options.lanes);
  const uint64_t number = (ticket - pass.units.begin) / options.lanes;  // in the span
  const uint64_t index = number / options.shuffle_block;
  Block& block = block_at(stream, slot);
  if (!block.is_entered || block.pass.index != pass.index || block.index != index)
    enter(block, stream, slot, pass, index);
  const uint64_t begin = index * options.shuffle_block;
  return block.visit.unit(begin + block.table[number - begin]);
}

UnitMap::Block& UnitMap::block_at(uint32_t stream, uint64_t place) {
  Block& block = blocks_[uint64_t{stream} << 32 | place];
  block.last_use = ++clock_;
  return block;
}

const UnitMap::Pass& UnitMap::pass_of(uint32_t stream, uint64_t ticket) {
  Pass& pass = passes_[stream];
  if (!pass.units.contains(ticket)) {
    pass.index = order_.stream(stream).pass(ticket);
    pass.units = order_.stream(stream).pass_units(pass.index);
  }
  return pass;
}

void UnitMap::enter(Block& block, uint32_t stream, uint32_t slot, const Pass& pass, uint64_t index) {
  const StreamOrder& order = order_.stream(stream);
  const bool goes_on = block.is_entered && block.pass.index == pass.index && block.index + 1 == index;
  if (!block.is_entered || block.pass.index != pass.index) block.visit = order.visit(pass.index, slot);
  block.pass = pass;
  block.index = index;
  const Range places = block_places(block.visit, index, order.options().shuffle_block);
  set_table(block, permutation(order.block_key(pass.index, slot, index), static_cast<uint32_t>(places.size())));
  move_to(block, stream, shards_under(stream, block.visit.cut(places)), shards_behind(block, stream, slot, 1));
  const uint64_t ahead = order_.blocks_ahead(stream);
  for (uint64_t blocks = goes_on && ahead > 0 ? 1 + ahead : 2; blocks <= 1 + ahead; ++blocks)  // not what was told
    change(stream, BlockChange::Kind::kComing, shards_behind(block, stream, slot, blocks));
}

// Under the block so many behind this one: of the same visit, or of the next; farther than that nothing is said.
std::vector<ShardRange> UnitMap::shards_behind(const Block& block, uint32_t stream, uint32_t slot,
                                               uint64_t blocks) const {
  const StreamOrder& order = order_.stream(stream);
  const uint64_t block_size = order.options().shuffle_block;
  const Range places = block_places(block.visit, block.index + blocks, block_size);
  if (places.size() > 0) return shards_under(stream, block.visit.cut(places));
  if (order.is_one_block(order.pass_units(block.pass.index + 1))) return {};
  const uint64_t rest = (block.visit.size() + block_size - 1) / block_size - block.index;  // this one and those behind
  const Visit visit = order.visit(block.pass.index + 1, slot);
  return shards_under(stream, visit.cut(block_places(visit, blocks - rest, block_size)));
}

void UnitMap::enter_whole(Block& block, uint32_t stream, const Pass& pass) {
  block.is_entered = true;
  block.pass = pass;
  block.visit = Visit({});
  set_table(block, permutation(order_.stream(stream).pass_key(pass.index), static_cast<uint32_t>(pass.units.size())));
  if (block.here.empty()) move_to(block, stream, shards_under(stream, {pass.units}), {});  // the same in every pass
}

void UnitMap::enter_unshuffled(Block& block, uint32_t stream, uint64_t index) {
  const uint64_t size = order_.stream(stream).options().shuffle_block;
  const auto under = [&](uint64_t i) { return shards_under(stream, {{i * size, (i + 1) * size}}); };
  const bool goes_on = block.is_entered && block.index + 1 == index;
  block.index = index;
  move_to(block, stream, under(index), under(index + 1));
  const uint64_t ahead = order_.blocks_ahead(stream);
  for (uint64_t blocks = goes_on && ahead > 0 ? 1 + ahead : 2; blocks <= 1 + ahead; ++blocks)
    change(stream, BlockChange::Kind::kComing, under(index + blocks));
}

void UnitMap::set_table(Block& block, std::vector<uint32_t> table) {
  table_bytes_ += bytes(table) - bytes(block.table);
  block.table = std::move(table);
  while (table_bytes_ > limit_bytes_) {
    const auto oldest = std::min_element(blocks_.begin(), blocks_.end(), [](const auto& a, const auto& b) {
      return a.second.last_use < b.second.last_use;
    });
    if (&oldest->second == &block) break;
    table_bytes_ -= bytes(oldest->second.table);
    move_to(oldest->second, static_cast<uint32_t>(oldest->first >> 32), {}, {});
    blocks_.erase(oldest);  // references to the other blocks stay valid
  }
}

std::vector<ShardRange> UnitMap::shards_under(uint32_t stream, const std::vector<Range>& units) const {
  std::vector<ShardRange> out;
  for (const Range& range : units) order_.stream(stream).append_ranges(range, out);
  return out;
}

void UnitMap::move_to(Block& block, uint32_t stream, std::vector<ShardRange> here, std::vector<ShardRange> next) {
  // What begins is told first, so that what goes on is never over in between.
  change(stream, BlockChange::Kind::kBegins, here);
  change(stream, BlockChange::Kind::kBegins, next);
  change(stream, BlockChange::Kind::kEnds, std::move(block.here));
  change(stream, BlockChange::Kind::kEnds, std::move(block.next));
  block.is_entered = true;
  block.here = std::move(here);
  block.next = std::move(next);
}

void UnitMap::change(uint32_t stream, BlockChange::Kind kind, std::vector<ShardRange> ranges) {
  if (!ranges.empty()) changes_.push_back({stream, kind, std::move(ranges)});
}

}  // namespace stoker
