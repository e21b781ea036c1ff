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
  if (!options.shuffle) return ticket;

  const Pass& pass = pass_of(stream, ticket);
  const bool whole = order.is_one_block(pass.units);
  const auto slot = static_cast<uint32_t>(ticket % options.lanes);
  // All lanes share the table of a one-block pass; two of them, since some lanes are in the next pass already.
  const uint64_t place = whole ? uint64_t{options.lanes} + pass.index % 2 : slot;
  Block& block = blocks_[uint64_t{stream} << 32 | place];
  block.last_use = ++clock_;
  if (whole) {
    if (block.table.empty() || block.pass.index != pass.index) enter_whole(block, stream, pass);
    return pass.units.begin + block.table[ticket - pass.units.begin];
  }
  const uint64_t number = (ticket - pass.units.begin) / options.lanes;  // in the span
  const uint64_t index = number / options.shuffle_block;
  if (block.table.empty() || block.pass.index != pass.index || block.index != index)
    enter(block, stream, slot, pass, index);
  const uint64_t begin = index * options.shuffle_block;
  return block.visit.unit(begin + block.table[number - begin]);
}

const UnitMap::Pass& UnitMap::pass_of(uint32_t stream, uint64_t ticket) {
  Pass& pass = passes_[stream];
  if (ticket < pass.units.begin || ticket >= pass.units.end) {
    pass.index = order_.stream(stream).pass(ticket);
    pass.units = order_.stream(stream).pass_units(pass.index);
  }
  return pass;
}

void UnitMap::enter(Block& block, uint32_t stream, uint32_t slot, const Pass& pass, uint64_t index) {
  const StreamOrder& order = order_.stream(stream);
  const uint64_t block_size = order.options().shuffle_block;
  const bool new_pass = block.visit.size() == 0 || block.pass.index != pass.index;
  const bool follows =
      !block.table.empty() && (new_pass ? index == 0 && block.pass.index + 1 == pass.index : block.index + 1 == index);
  if (new_pass) block.visit = order.visit(pass.index, slot);
  block.pass = pass;
  block.index = index;
  const Range places = block_places(block.visit, index, block_size);
  set_table(block, permutation(order.block_key(pass.index, slot, index), static_cast<uint32_t>(places.size())));

  if (!follows) announce(stream, block.visit.cut(places));
  const Range next = block_places(block.visit, index + 1, block_size);
  if (next.size() > 0) {
    announce(stream, block.visit.cut(next));
  } else if (!order.is_one_block(order.pass_units(pass.index + 1))) {
    const Visit visit = order.visit(pass.index + 1, slot);
    announce(stream, visit.cut(block_places(visit, 0, block_size)));
  }
}

void UnitMap::enter_whole(Block& block, uint32_t stream, const Pass& pass) {
  block.pass = pass;
  block.visit = Visit({});
  set_table(block, permutation(order_.stream(stream).pass_key(pass.index), static_cast<uint32_t>(pass.units.size())));
  announce(stream, {pass.units});
}

void UnitMap::set_table(Block& block, std::vector<uint32_t> table) {
  table_bytes_ += bytes(table) - bytes(block.table);
  block.table = std::move(table);
  while (table_bytes_ > kTableBytes) {
    const auto oldest = std::min_element(blocks_.begin(), blocks_.end(), [](const auto& a, const auto& b) {
      return a.second.last_use < b.second.last_use;
    });
    if (&oldest->second == &block) break;
    table_bytes_ -= bytes(oldest->second.table);
    blocks_.erase(oldest);  // references to the other blocks stay valid
  }
}

void UnitMap::announce(uint32_t stream, const std::vector<Range>& units) {
  std::vector<ShardRange> pieces;
  for (const Range& range : units) order_.stream(stream).append_pieces(range, pieces);
  for (const ShardRange& piece : pieces) upcoming_.push_back({stream, piece});
}

}  // namespace stoker
