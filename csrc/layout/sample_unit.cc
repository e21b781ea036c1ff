#include "layout/sample_unit.h"

namespace stoker {

SampleUnit find_sample(const Order& order, Unit unit, SampleLengths& lengths, std::vector<ShardRange>& ranges) {
  ranges.clear();
  order.stream(unit.stream).append_ranges(unit.index, ranges);
  const uint32_t shard = ranges.front().shard;
  const auto sample = static_cast<uint32_t>(ranges.front().things.begin);
  const std::span<const uint32_t> ends = lengths.token_ends(unit.stream, shard);
  return {unit.stream, shard, sample, ends[sample] - (sample == 0 ? 0 : ends[sample - 1])};
}

ArgumentError too_long(const Order& order, const SampleUnit& unit, SampleLengths& lengths, uint32_t seq_len) {
  return ArgumentError(text("stream \"", order.stream(unit.stream).name(), "\": sample ", unit.sample, " of ",
                            lengths.path(unit.stream, unit.shard), " has ", unit.length, " tokens, more than seq_len ",
                            seq_len, ", and overflow is \"error\"; raise seq_len or set overflow=\"truncate\"."));
}

}  // namespace stoker
