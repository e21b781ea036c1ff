#include "order/stride.h"

#include <algorithm>
#include <cassert>
#include <numeric>
#include <utility>

#include "order/dealing.h"

namespace stoker {
namespace {

// due_a < due_b by cross-multiplication. Numerators are below 2^72 and weights at most 2^56, so products fit.
bool due_before(u128 numerator_a, uint64_t weight_a, uint32_t stream_a, u128 numerator_b, uint64_t weight_b,
                uint32_t stream_b) {
  const u128 a = numerator_a * weight_b;
  const u128 b = numerator_b * weight_a;
  return a != b ? a < b : stream_a < stream_b;
}

}  // namespace

Stride::Stride(std::vector<uint64_t> weights, std::vector<uint64_t> phases)
    : weights_(std::move(weights)), phases_(std::move(phases)) {
  total_ = std::accumulate(weights_.begin(), weights_.end(), uint64_t{0});
  assert(total_ <= uint64_t{1} << kGridBits && weights_.size() == phases_.size());
  if (total_ == 0) return;
  int shift = 0;  // one power of two for all is exact
  while (total_ << (shift + 1) <= uint64_t{1} << kGridBits) ++shift;
  for (uint64_t& weight : weights_) weight <<= shift;
  total_ <<= shift;
}

// Grid time counts cells of 2^-56 of a unit of time; at most one draw of a stream is due within a cell. Draws due
// strictly before `grid_time`: ceil(grid_time * weight / 2^56 - phase / 2^32).
uint64_t Stride::draws_before(uint32_t stream, uint64_t grid_time) const {
  const u128 reach = static_cast<u128>(grid_time) * weights_[stream];
  const u128 phase = static_cast<u128>(phases_[stream]) << (kGridBits - kPhaseBits);
  if (weights_[stream] == 0 || reach <= phase) return 0;
  return static_cast<uint64_t>(ceil_div<u128>(reach - phase, u128{1} << kGridBits));
}

uint64_t Stride::total_draws_before(uint64_t grid_time) const {
  uint64_t total = 0;
  for (uint32_t s = 0; s < num_streams(); ++s) total += draws_before(s, grid_time);
  return total;
}

Stride::Position Stride::seek(uint64_t num_draws) const {
  assert(total_ > 0 && num_draws < uint64_t{1} << kPositionBits);
  // Grid times with at most and with more than num_draws draws before them: a stream is off by at most one draw.
  const uint64_t streams = num_streams();
  uint64_t low = 0;
  if (num_draws > streams) {
    const auto estimate = static_cast<uint64_t>((static_cast<u128>(num_draws - streams) << kGridBits) / total_);
    low = estimate > 0 ? estimate - 1 : 0;
  }
  auto high = static_cast<uint64_t>((static_cast<u128>(num_draws + streams + 1) << kGridBits) / total_) + 2;
  while (high - low > 1) {
    const uint64_t middle = low + (high - low) / 2;
    (total_draws_before(middle) <= num_draws ? low : high) = middle;
  }

  // Now the draw lies in the cell [low, low + 1): take the cell's draws in due order up to it.
  Position at{std::vector<uint64_t>(streams), 0};
  std::vector<uint32_t> cell;
  uint64_t before = 0;
  for (uint32_t s = 0; s < streams; ++s) {
    before += at.draws[s] = draws_before(s, low);
    if (draws_before(s, low + 1) > at.draws[s]) cell.push_back(s);
  }
  std::sort(cell.begin(), cell.end(), [&](uint32_t a, uint32_t b) {
    return due_before(due_numerator(a, at.draws[a]), weights_[a], a, due_numerator(b, at.draws[b]), weights_[b], b);
  });
  const uint64_t skip = num_draws - before;
  assert(skip < cell.size());
  for (uint64_t i = 0; i < skip; ++i) ++at.draws[cell[i]];
  at.next_stream = cell[skip];
  return at;
}

StrideCursor::StrideCursor(const Stride& stride, uint64_t num_draws) {
  const std::vector<uint64_t> draws =
      num_draws == 0 ? std::vector<uint64_t>(stride.num_streams()) : stride.seek(num_draws).draws;
  for (uint32_t s = 0; s < stride.num_streams(); ++s) {
    if (stride.weight(s) == 0) continue;
    heap_.push_back({stride.due_numerator(s, draws[s]), stride.weight(s), draws[s], s});
  }
  assert(!heap_.empty());
  for (size_t i = heap_.size() / 2; i-- > 0;) sift_down(i);
}

void StrideCursor::next() {
  Entry& front = heap_.front();
  front.due_numerator += u128{1} << kPhaseBits;
  ++front.index;
  sift_down(0);
}

bool StrideCursor::before(const Entry& a, const Entry& b) {
  return due_before(a.due_numerator, a.weight, a.stream, b.due_numerator, b.weight, b.stream);
}

// std::pop_heap and push_heap would walk the heap twice a draw.
void StrideCursor::sift_down(size_t hole) {
  const Entry moving = heap_[hole];
  for (;;) {
    size_t child = 2 * hole + 1;
    if (child >= heap_.size()) break;
    if (child + 1 < heap_.size() && before(heap_[child + 1], heap_[child])) ++child;
    if (!before(heap_[child], moving)) break;
    heap_[hole] = heap_[child];
    hole = child;
  }
  heap_[hole] = moving;
}

}  // namespace stoker
