#include "order/stream_order.h"

#include <algorithm>
#include <cassert>
#include <numeric>
#include <utility>

#include "base/int128.h"
#include "order/dealing.h"
#include "order/key.h"

namespace stoker {

Visit::Visit(std::vector<Range> fragments) {
  uint64_t end = 0;
  for (const Range& fragment : fragments) {
    first_.push_back(fragment.begin);
    ends_.push_back(end += fragment.size());
  }
}

uint64_t Visit::unit(uint64_t y) const {
  const auto at = std::upper_bound(ends_.begin(), ends_.end(), y) - ends_.begin();
  return first_[at] + y - (at == 0 ? 0 : ends_[at - 1]);
}

std::vector<Range> Visit::cut(Range places) const {
  std::vector<Range> out;
  auto at = std::upper_bound(ends_.begin(), ends_.end(), places.begin) - ends_.begin();
  for (uint64_t y = places.begin; y < places.end; ++at) {
    const uint64_t begin = first_[at] + y - (at == 0 ? 0 : ends_[at - 1]);
    const uint64_t take = std::min(ends_[at], places.end) - y;
    out.push_back({begin, begin + take});
    y += take;
  }
  return out;
}

StreamOrder::StreamOrder(StreamSizes sizes, const Options& options) : name_(std::move(sizes.name)), options_(options) {
  const auto num_shards = static_cast<uint32_t>(sizes.shard_sizes.size());
  if (options_.shuffle) {
    shards_ = permutation(key(options_.seed, "shards", name_), num_shards);
  } else {
    shards_.resize(num_shards);
    std::iota(shards_.begin(), shards_.end(), 0U);
  }
  first_.reserve(num_shards + 1);
  first_.push_back(0);
  for (const uint32_t shard : shards_) first_.push_back(first_.back() + sizes.shard_sizes[shard]);
}

uint64_t StreamOrder::pass(uint64_t unit_or_ticket) const {
  return static_cast<uint64_t>(static_cast<u128>(unit_or_ticket) * options_.unit / total());
}

Range StreamOrder::pass_units(uint64_t pass) const {
  const auto first_unit = [&](uint64_t p) {
    return static_cast<uint64_t>(ceil_div<u128>(static_cast<u128>(p) * total(), options_.unit));
  };
  return {first_unit(pass), first_unit(pass + 1)};
}

Visit StreamOrder::visit(uint64_t pass, uint32_t slot) const {
  const Range units = pass_units(pass);
  const auto span_begin = [&](uint64_t j) {  // slot j has as many units as the pass has tickets K = j (mod L)
    return units.begin + count_below(units.end, options_.lanes, j) - count_below(units.begin, options_.lanes, j);
  };
  const Range span{span_begin(slot), span_begin(slot + 1)};

  // A fragment is what one shard, that is the units that begin in it, has in the span. Only shards near the span
  // are looked at, so that planning one lane of many costs its part of the shards.
  const u128 pass_begin = static_cast<u128>(pass) * total();
  const auto edge = [&](size_t j) {
    const auto unit = static_cast<uint64_t>(ceil_div<u128>(pass_begin + first_[j], options_.unit));
    return std::clamp(unit, span.begin, span.end);
  };
  const auto starts_after = [&](uint64_t unit) {  // the first shard that begins after the start of the unit
    const u128 thing = static_cast<u128>(unit) * options_.unit;
    const uint64_t in_pass = thing <= pass_begin ? 0 : static_cast<uint64_t>(thing - pass_begin);
    return static_cast<size_t>(std::upper_bound(first_.begin(), first_.end(), in_pass) - first_.begin());
  };
  std::vector<Range> fragments;
  const size_t last = std::min(starts_after(span.end), shards_.size());
  for (size_t j = starts_after(span.begin) - 1; j < last; ++j) {
    const Range fragment{edge(j), edge(j + 1)};
    if (fragment.size() > 0) fragments.push_back(fragment);
  }

  std::vector<Range> visited;
  visited.reserve(fragments.size());
  for (const uint32_t j : permutation(key(options_.seed, "visit", name_, pass, slot), fragments.size()))
    visited.push_back(fragments[j]);
  return Visit(std::move(visited));
}

uint64_t StreamOrder::pass_key(uint64_t pass) const { return key(options_.seed, "block", name_, pass); }

uint64_t StreamOrder::block_key(uint64_t pass, uint32_t slot, uint64_t block) const {
  return key(options_.seed, "block", name_, pass, slot, block);
}

void StreamOrder::append_ranges(Range units, std::vector<ShardRange>& out) const {
  if (units.size() > 0) append_things({units.begin * options_.unit, units.end * options_.unit}, out);
}

void StreamOrder::append_things(Range things, std::vector<ShardRange>& out) const {
  assert(total() > 0);
  while (things.begin < things.end) {
    const uint64_t in_pass = things.begin % total();
    const auto j = std::upper_bound(first_.begin(), first_.end(), in_pass) - first_.begin() - 1;
    const uint64_t take = std::min(things.size(), first_[j + 1] - in_pass);
    const uint64_t begin = in_pass - first_[j];
    out.push_back({shards_[j], {begin, begin + take}});
    things.begin += take;
  }
}

}  // namespace stoker
