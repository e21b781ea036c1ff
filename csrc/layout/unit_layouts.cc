#include "layout/unit_layouts.h"

#include <algorithm>
#include <optional>

#include "base/error.h"

namespace stoker {

void PadLayout::append_row(uint64_t row, Rows& out) {
  if (const std::optional<Unit> unit = cursor_.row(row)) {
    out.count_unit(unit->stream);
    ranges_.clear();
    order_.stream(unit->stream).append_ranges(unit->index, ranges_);
    const uint32_t shard = ranges_.front().shard;
    const auto sample = static_cast<uint32_t>(ranges_.front().things.begin);
    const std::span<const uint32_t> ends = lengths_.token_ends(unit->stream, shard);
    const uint32_t length = ends[sample] - (sample == 0 ? 0 : ends[sample - 1]);
    const uint32_t kept = std::min(length, spec_.seq_len);
    if (kept < length) {
      if (spec_.overflow == Overflow::kError)
        throw ArgumentError(text("sample ", sample, " of shard ", shard, " of stream \"",
                                 order_.stream(unit->stream).name(), "\" has ", length, " tokens, more than seq_len ",
                                 spec_.seq_len,
                                 ", and overflow is \"error\"; raise seq_len or set overflow=\"truncate\"."));
      out.count_truncated(unit->stream, length - kept);
    }
    out.add({unit->stream, shard, sample, 0, kept});  // an empty sample too: the row is that sample
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

std::unique_ptr<Layout> make_layout(const LayoutSpec& spec, const Order& order, SampleLengths& lengths) {
  switch (spec.kind) {
    case LayoutKind::kPad:
      return std::make_unique<PadLayout>(spec, order, lengths);
    case LayoutKind::kConcat:
      return std::make_unique<ConcatLayout>(order, lengths);
  }
  throw ArgumentError("unknown layout.");  // not reached: the bindings accept the two names only
}

}  // namespace stoker
