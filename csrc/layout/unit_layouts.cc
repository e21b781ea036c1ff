#include "layout/unit_layouts.h"

#include <algorithm>
#include <optional>

#include "layout/sample_unit.h"

namespace stoker {

void PadLayout::append_row(uint64_t row, Rows& out) {
  if (const std::optional<Unit> unit = cursor_.row(row)) {
    out.count_unit(unit->stream);
    const SampleUnit found = find_sample(order_, *unit, lengths_, ranges_);
    check_length(spec_, order_, found, lengths_);
    const auto [segment, truncated] = truncate(found, spec_.seq_len);
    if (truncated > 0) out.count_truncated(unit->stream, truncated);
    if (found.length == 0) out.count_empty(unit->stream);
    out.add(segment);  // an empty sample too: the row is that sample
  }
  out.end_row();
}

void ConcatLayout::append_row(uint64_t row, Rows& out) {
  if (const std::optional<Unit> unit = cursor_.row(row)) {
    out.count_unit(unit->stream);
    ranges_.clear();
    order_.stream(unit->stream).append_ranges(unit->index, ranges_);
    for (const ShardRange& range : ranges_) {
      // Cut the range at its samples. Empty samples end where the one before them ends, so the search skips them.
      const std::span<const uint32_t> ends = lengths_.token_ends(unit->stream, range.shard);
      if (ends.empty() || ends.back() < range.things.end) continue;  // a missing shard: the row is shorter
      auto sample =
          static_cast<uint32_t>(std::upper_bound(ends.begin(), ends.end(), range.things.begin) - ends.begin());
      for (uint64_t at = range.things.begin; at < range.things.end; ++sample) {
        const uint32_t sample_begin = sample == 0 ? 0 : ends[sample - 1];
        const uint64_t end = std::min<uint64_t>(ends[sample], range.things.end);
        if (end > at)
          out.add({unit->stream, range.shard, sample, static_cast<uint32_t>(at - sample_begin),
                   static_cast<uint32_t>(end - sample_begin)});
        at = end;
      }
    }
  }
  out.end_row();
}

}  // namespace stoker
