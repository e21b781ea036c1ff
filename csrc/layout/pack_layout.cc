#include "layout/pack_layout.h"

#include <algorithm>
#include <iterator>
#include <map>
#include <numeric>
#include <utility>

#include "base/error.h"
#include "layout/sample_unit.h"
#include "order/dealing.h"
#include "order/key.h"

namespace stoker {
namespace {

constexpr uint32_t kMostEmptyWindows = 1000;  // windows without a token, one after the other: an error, not a hang

// Samples dropped one after the other until a stream is taken for one that has no other: lanes see parts of a stream,
// and small streams in random order.
uint64_t dropped_at_most(const StreamOrder& stream) { return std::max<uint64_t>(4096, 4 * stream.total()); }

constexpr uint64_t kMostPositions = (uint64_t{1} << kPositionBits) - (uint64_t{1} << 26);  // a window lies behind one

ArgumentError damaged(uint32_t lane, const std::string& what) {
  return ArgumentError(text("the state is damaged: lane ", lane, " ", what, ". Load another checkpoint."));
}

uint32_t round_up(uint32_t tokens, uint32_t multiple) { return ceil_div(tokens, multiple) * multiple; }

}  // namespace

PackLayout::PackLayout(const LayoutSpec& spec, const Order& order, SampleLengths& lengths, const LayoutStart& start)
    : spec_(spec),
      order_(order),
      lengths_(lengths),
      start_(start),
      cursor_(order),
      best_fit_(spec.seq_len, spec.max_samples_per_row),
      dropped_in_a_row_(order.num_streams()) {}

void PackLayout::append_row(uint64_t row, Rows& out) {
  const uint64_t lane_row = row / order_.lanes();
  Lane& lane = lane_at_or_before(static_cast<uint32_t>(row % order_.lanes()), lane_row);
  while (lane.row < lane_row) step(lane, lane_row);
  if (lane.num_emitted == lane.rows.size()) open_window(lane);
  for (const Unplaced& sample : std::exchange(lane.unplaced, {})) out.count_unplaced(sample);
  for (const Part& part : lane.rows[lane.num_emitted]) {
    if (part.segment.token_begin == 0) out.count_unit(part.segment.stream);
    if (part.truncated > 0) out.count_truncated(part.segment.stream, part.truncated);
    out.add(part.segment);
  }
  out.end_row();
  ++lane.num_emitted;
  ++lane.row;
}

bool PackLayout::approach(uint64_t row) {
  const uint64_t lane_row = row / order_.lanes();
  Lane& lane = lane_at_or_before(static_cast<uint32_t>(row % order_.lanes()), lane_row);
  if (lane.row < lane_row) step(lane, lane_row);
  return lane.row == lane_row;
}

std::shared_ptr<const LaneHints> PackLayout::hints(uint64_t row) {
  auto out = std::make_shared<LaneHints>();
  out->reserve(lanes_.size());
  for (auto& [number, lane] : lanes_) {
    const uint64_t lane_row = dealt(0, row, order_.lanes(), number);
    while (lane.row < lane_row) step(lane, lane_row);
    LaneHint hint{number, lane.window_begin, lane.num_emitted, {}};
    for (const FoundryPacker::Bin& bin : lane.bins_before) hint.leftovers.push_back(bin.examples);
    out->push_back(std::move(hint));
  }
  if (start_.hints)  // of lanes that nothing was asked of yet
    for (const LaneHint& hint : *start_.hints)
      if (lanes_.count(hint.lane) == 0 && dealt(start_.row, row, order_.lanes(), hint.lane) == 0) out->push_back(hint);
  std::sort(out->begin(), out->end(), [](const LaneHint& a, const LaneHint& b) { return a.lane < b.lane; });
  return out;
}

// ---------------------------------------------------------------- walking
PackLayout::Lane& PackLayout::lane_at_or_before(uint32_t number, uint64_t lane_row) {
  const auto [found, is_new] = lanes_.try_emplace(number);
  Lane& lane = found->second;
  if (!is_new && lane.row <= lane_row) return lane;
  std::move(lane.ends.begin(), lane.ends.end(), std::back_inserter(changes_));
  lane = Lane();
  lane.number = number;
  if (!start_.hints || lane_row < dealt(0, start_.row, order_.lanes(), number)) return lane;
  const auto hint = std::find_if(start_.hints->begin(), start_.hints->end(),
                                 [&, lane_number = number](const LaneHint& h) { return h.lane == lane_number; });
  if (hint != start_.hints->end()) start(lane, *hint);
  return lane;
}

// Puts a lane where its hint stands. Hints come from outside: what they say is checked.
void PackLayout::start(Lane& lane, const LaneHint& hint) {
  if (hint.window_begin >= kMostPositions) throw damaged(lane.number, "says that its window begins beyond all samples");
  restore_leftovers(lane, hint);
  lane.window_end = hint.window_begin;
  open_window(lane);
  if (lane.window_begin != hint.window_begin || hint.rows_emitted > lane.rows.size())
    throw damaged(lane.number, text("says that ", hint.rows_emitted, " rows of the window that begins at its sample ",
                                    hint.window_begin, " were delivered, which has ", lane.rows.size()));
  lane.num_emitted = hint.rows_emitted;
  lane.unplaced.clear();  // told with the first of these rows
  lane.row = dealt(0, start_.row, order_.lanes(), lane.number);
}

void PackLayout::restore_leftovers(Lane& lane, const LaneHint& hint) {
  std::vector<Part> parts;
  std::vector<Unplaced> unplaced;
  for (const std::vector<uint64_t>& examples : hint.leftovers) {
    FoundryPacker::Bin bin{0, examples};
    for (const uint64_t position : examples) {
      parts.clear();
      if (position < hint.window_begin) append_sample(lane.number, position, parts, unplaced);
      if (parts.size() != 1 || !lane.left.parts.emplace(position, parts.front()).second)
        throw damaged(lane.number, text("says that its sample ", position, " is left over from packing"));
      bin.size += parts.front().segment.size();
    }
    if (examples.empty() || bin.size > spec_.seq_len)
      throw damaged(lane.number, text("says that a row of ", bin.size, " tokens is left over from packing"));
    lane.left.bins.push_back(std::move(bin));
  }
}

// Passes over rows of the lane towards `lane_row`, those of one window at most.
void PackLayout::step(Lane& lane, uint64_t lane_row) {
  if (lane.num_emitted == lane.rows.size()) open_window(lane);
  const uint64_t rows = std::min(lane_row - lane.row, lane.rows.size() - lane.num_emitted);
  lane.num_emitted += rows;
  lane.row += rows;
  lane.unplaced.clear();  // of a row that is another rank's, or that was delivered before
}

// ---------------------------------------------------------------- windows
void PackLayout::open_window(Lane& lane) {
  lane.num_emitted = 0;
  lane.rows = {};
  std::vector<BlockChange> ends = std::exchange(lane.ends, {});  // of the window that is over
  for (uint32_t tries = 0; lane.rows.size() == 0; ++tries) {
    if (tries > kMostEmptyWindows)
      throw ArgumentError(text("lane ", lane.number, " finds no token in ", tries,
                               " windows: its samples are empty or dropped. Raise seq_len, choose another overflow "
                               "than \"drop\", or give fewer lanes."));
    lane.window_begin = lane.window_end;
    spec_.packing == LayoutSpec::Packing::kFoundry ? pack_as_foundry(lane) : pack_best_fit(lane);
  }
  for (BlockChange& change : cursor_.take_changes())
    (change.kind == BlockChange::Kind::kEnds ? lane.ends : changes_).push_back(std::move(change));
  std::move(ends.begin(), ends.end(), std::back_inserter(changes_));
}

// What is kept of a sample: parts of at most seq_len tokens, none of an empty or dropped one.
void PackLayout::append_sample(uint32_t lane, uint64_t position, std::vector<Part>& parts,
                               std::vector<Unplaced>& unplaced) {
  const Unit unit = cursor_.lane_unit({{lane, 0}, position});
  const auto [stream, shard, sample, length] = find_sample(order_, unit, lengths_, ranges_);
  const Overflow overflow = spec_.overflow[stream];
  check_length(spec_, order_, {stream, shard, sample, length}, lengths_);
  const bool is_dropped = length > spec_.seq_len && overflow == Overflow::kDrop;
  uint64_t& dropped = dropped_in_a_row_[stream];
  dropped = is_dropped ? dropped + 1 : 0;
  if (dropped > dropped_at_most(order_.stream(stream)))
    throw ArgumentError(text("stream \"", order_.stream(stream).name(), "\" delivers nothing: ", dropped,
                             " of its samples in a row have more than seq_len = ", spec_.seq_len,
                             " tokens and were dropped. Raise seq_len, choose another overflow, or leave it out."));
  if (is_dropped || length == 0) {
    unplaced.push_back({stream, length});
    return;
  }
  const uint32_t kept = overflow == Overflow::kSplit ? length : std::min(length, spec_.seq_len);
  for (uint32_t begin = 0; begin < kept; begin += std::min(kept - begin, spec_.seq_len))
    parts.push_back({{stream, shard, sample, begin, begin + std::min(kept - begin, spec_.seq_len)}, length - kept});
}

void PackLayout::pack_best_fit(Lane& lane) {
  std::vector<Part> parts;
  const uint64_t most_tokens = uint64_t{spec_.window_rows} * spec_.seq_len;
  uint64_t tokens = 0;
  for (; lane.window_end - lane.window_begin < spec_.pack_window && tokens < most_tokens; ++lane.window_end) {
    const size_t before = parts.size();
    append_sample(lane.number, lane.window_end, parts, lane.unplaced);
    for (size_t i = before; i < parts.size(); ++i) tokens += parts[i].segment.size();
  }

  // Group by group; most specs have one.
  std::map<uint32_t, std::vector<uint32_t>> groups;
  for (uint32_t i = 0; i < parts.size(); ++i) groups[spec_.groups[parts[i].segment.stream]].push_back(i);
  BestFit::Result packed{std::vector<uint32_t>(parts.size()), {}, 0};
  std::vector<uint32_t> sizes;
  for (const auto& [group, members] : groups) {
    sizes.clear();
    for (const uint32_t i : members) sizes.push_back(round_up(parts[i].segment.size(), spec_.pad_to_multiple));
    const BestFit::Result of_group = best_fit_.pack(sizes);
    for (const uint32_t i : of_group.sorted) {
      packed.sorted.push_back(members[i]);
      packed.row_of[members[i]] = packed.num_rows + of_group.row_of[i];
    }
    packed.num_rows += of_group.num_rows;
  }
  const uint64_t rows_key = key(order_.spec().seed, "rows", uint64_t{lane.number}, lane.window_begin);
  lane.rows = WindowRows(parts, packed, permutation(rows_key, packed.num_rows));
}

PackLayout::WindowRows::WindowRows(std::span<const Part> parts, const BestFit::Result& packed,
                                   std::vector<uint32_t> order)
    : parts_(parts.size()), begins_(size_t{packed.num_rows} + 1), order_(std::move(order)) {
  for (const uint32_t row : packed.row_of) ++begins_[row + 1];
  std::partial_sum(begins_.begin(), begins_.end(), begins_.begin());
  std::vector<uint32_t> next = begins_;
  for (const uint32_t i : packed.sorted) parts_[next[packed.row_of[i]]++] = parts[i];
}

void PackLayout::WindowRows::add(std::span<const Part> row) {
  order_.push_back(static_cast<uint32_t>(order_.size()));
  parts_.insert(parts_.end(), row.begin(), row.end());
  begins_.push_back(static_cast<uint32_t>(parts_.size()));
}

void PackLayout::pack_as_foundry(Lane& lane) {
  lane.bins_before = lane.left.bins;
  std::vector<uint64_t> positions;
  NumberedParts parts;
  std::vector<Part> kept;
  for (; lane.window_end - lane.window_begin < spec_.pack_window; ++lane.window_end) {
    kept.clear();
    append_sample(lane.number, lane.window_end, kept, lane.unplaced);
    if (kept.empty()) continue;
    positions.push_back(lane.window_end);
    parts.emplace(lane.window_end, kept.front());
  }
  const auto [rows, dropped] = stoker::pack_as_foundry(spec_, positions, parts, lane.left);
  for (const std::vector<Part>& row : rows) lane.rows.add(row);
  for (const Part& part : dropped) lane.unplaced.push_back(left_out(part));
}

}  // namespace stoker
