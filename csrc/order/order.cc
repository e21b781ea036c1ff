#include "order/order.h"

#include <algorithm>
#include <cassert>
#include <numeric>
#include <utility>

#include "base/error.h"
#include "base/int128.h"
#include "order/dealing.h"
#include "order/key.h"

namespace stoker {

uint64_t OrderSpec::epoch_units() const { return std::accumulate(counts.begin(), counts.end(), uint64_t{0}); }

Order::Order(OrderSpec spec) : spec_(std::move(spec)), lanes_(spec_.shuffle ? spec_.lanes : 1) {
  const size_t num_streams = spec_.streams.size();
  if (num_streams == 0 || spec_.counts.size() != num_streams)
    throw ArgumentError(text("an order needs one count for each of its streams, at least one; found ",
                             spec_.counts.size(), " counts for ", num_streams, " streams."));
  if (spec_.lanes < 1 || spec_.unit < 1 || spec_.shuffle_block < 1 || spec_.global_batch < 1)
    throw ArgumentError(text("lanes, unit, shuffle_block and global_batch must be at least 1; found ", spec_.lanes,
                             ", ", spec_.unit, ", ", spec_.shuffle_block, " and ", spec_.global_batch, "."));
  if (!spec_.finite && !spec_.drop_last) throw ArgumentError("drop_last=False needs layout pad or concat.");
  if (!spec_.blocks_ahead.empty() && spec_.blocks_ahead.size() != num_streams)
    throw ArgumentError("blocks_ahead must have one entry for each stream, or none.");
  uint64_t limit = uint64_t{1} << (spec_.finite ? kPositionBits : kGridBits);
  for (const uint64_t count : spec_.counts) {
    if (count > limit)
      throw ArgumentError(text("the counts of all streams together must stay below 2^",
                               spec_.finite ? kPositionBits : kGridBits, "; lower the weights or epoch_size."));
    limit -= count;
  }
  epoch_units_ = spec_.epoch_units();
  if (epoch_units_ == 0) throw ArgumentError("no stream delivers anything: every count is 0.");

  const StreamOrder::Options options{spec_.seed, lanes_, spec_.unit, spec_.shuffle, spec_.shuffle_block};
  uint64_t before = 0;
  for (size_t s = 0; s < num_streams; ++s) {
    streams_.emplace_back(std::move(spec_.streams[s]), options);
    if (spec_.counts[s] > 0 && streams_[s].total() == 0)
      throw ArgumentError(text("stream \"", streams_[s].name(), "\" is asked for but is empty."));
    counts_before_.push_back(before);
    before += spec_.counts[s];
  }
  spec_.streams.clear();  // their sizes live in streams_ now

  if (!spec_.shuffle) return;
  strata_.resize(num_streams);
  std::vector<uint64_t> weights;
  std::vector<uint64_t> phases;
  for (uint32_t s = 0; s < num_streams; ++s) {
    base_phases_.push_back(key(spec_.seed, "phase", streams_[s].name()) >> (64 - kPhaseBits));
    if (static_cast<u128>(spec_.counts[s]) * lanes_ >= epoch_units_) {
      frequent_.push_back(s);
      weights.push_back(spec_.counts[s]);
      phases.push_back(base_phases_[s]);
    } else {
      strata_[s] = permutation(key(spec_.seed, "strata", streams_[s].name()), lanes_);
    }
  }
  if (!frequent_.empty()) mix_.emplace(std::move(weights), std::move(phases));
}

std::optional<LanePlace> Order::place(uint64_t row) const {
  assert(spec_.finite);
  if (spec_.drop_last) {
    const uint64_t epoch = row / epoch_units_;
    const auto lane = static_cast<uint32_t>(row % lanes_);
    return LanePlace{{lane, epoch}, row / lanes_ - dealt(0, epoch * epoch_units_, lanes_, lane)};
  }
  const uint64_t padded = ceil_div(epoch_units_, spec_.global_batch) * spec_.global_batch;
  const uint64_t in_epoch = row % padded;
  if (in_epoch >= epoch_units_) return std::nullopt;
  return LanePlace{{static_cast<uint32_t>(in_epoch % lanes_), row / padded}, in_epoch / lanes_};
}

// The lane where the dealing of a stream begins in an epoch: a chain over epochs and streams, so that the lanes'
// totals are those of rows.
uint64_t Order::dealing_start(uint32_t stream, uint64_t epoch) const {
  return ((spec_.drop_last ? epoch * epoch_units_ : 0) + counts_before_[stream]) % lanes_;
}

uint64_t Order::lane_count(uint32_t stream, LaneEpoch in) const {
  const uint64_t begin = dealing_start(stream, in.epoch);
  return dealt(begin, begin + spec_.counts[stream], lanes_, in.lane);
}

Stride Order::stride(LaneEpoch in) const {
  std::vector<uint64_t> weights = spec_.counts;
  if (spec_.finite)
    for (uint32_t s = 0; s < num_streams(); ++s) weights[s] = lane_count(s, in);
  return Stride(std::move(weights), spec_.shuffle ? phases(in.lane) : std::vector<uint64_t>(num_streams()));
}

std::vector<uint64_t> Order::phases(uint32_t lane) const {
  std::vector<uint64_t> out(num_streams());
  for (uint32_t s = 0; s < num_streams(); ++s)
    if (!strata_[s].empty())
      out[s] = ((static_cast<uint64_t>(strata_[s][lane]) << kPhaseBits) + base_phases_[s]) / lanes_;
  if (!mix_) return out;

  // Just before draw number `lane` of the mix: what is left of each stream's stride until its next draw.
  const Stride::Position at = mix_->seek(lane);
  const uint32_t first = at.next_stream;
  const u128 now = mix_->due_numerator(first, at.draws[first]);  // over the weight of `first`
  for (uint32_t j = 0; j < frequent_.size(); ++j) {
    const u128 due = mix_->due_numerator(j, at.draws[j]);
    const u128 left = (due * mix_->weight(first) - now * mix_->weight(j)) / mix_->weight(first);
    // 2^32 itself appears only where j ties with `first` and has just been drawn.
    out[frequent_[j]] = static_cast<uint64_t>(std::min<u128>(left, (u128{1} << kPhaseBits) - 1));
  }
  return out;
}

// Endless orders deal tickets K = lane (mod L). Finite ones the same within an epoch's counts[stream] tickets, but the
// last counts[stream] mod L of them go to the lanes from dealing_start on, which have one draw more.
uint64_t Order::ticket(StrideCursor::Draw draw, LaneEpoch in) const {
  if (!spec_.finite) return draw.index * lanes_ + in.lane;
  const uint64_t count = spec_.counts[draw.stream];
  const uint64_t first = in.epoch * count;
  const uint64_t start = draw.index < count / lanes_ ? first % lanes_ : dealing_start(draw.stream, in.epoch);
  const uint64_t ticket = first + draw.index * lanes_ + (in.lane + lanes_ - start) % lanes_;
  assert(first <= ticket && ticket < first + count);
  return ticket;
}

}  // namespace stoker
