#include "layout/sample_unit.h"

#include <algorithm>

namespace stoker {

SampleUnit find_sample(const Order& order, Unit unit, SampleLengths& lengths, std::vector<ShardRange>& ranges) {
  ranges.clear();
  order.stream(unit.stream).append_ranges(unit.index, ranges);
  return measure({unit.stream, ranges.front().shard, static_cast<uint32_t>(ranges.front().things.begin)}, lengths);
}

SampleUnit measure(SamplePlace place, SampleLengths& lengths) {
  const auto [stream, shard, sample] = place;
  const std::span<const uint32_t> ends = lengths.token_ends(stream, shard);
  return {stream, shard, sample, ends[sample] - (sample == 0 ? 0 : ends[sample - 1])};
}

Part truncate(const SampleUnit& unit, uint32_t seq_len) {
  const uint32_t kept = std::min(unit.length, seq_len);
  return {{unit.stream, unit.shard, unit.sample, 0, kept}, unit.length - kept};
}

Unplaced left_out(const Part& part) { return {part.segment.stream, uint64_t{part.segment.size()} + part.truncated}; }

void check_length(const LayoutSpec& spec, const Order& order, const SampleUnit& unit, SampleLengths& lengths) {
  if (unit.length <= spec.seq_len || spec.overflow[unit.stream] != Overflow::kError) return;
  throw ArgumentError(text("stream \"", order.stream(unit.stream).name(), "\": sample ", unit.sample, " of ",
                           lengths.path(unit.stream, unit.shard), " has ", unit.length, " tokens, more than seq_len ",
                           spec.seq_len, ", and overflow is \"error\"; raise seq_len or set overflow=\"truncate\"."));
}

}  // namespace stoker
