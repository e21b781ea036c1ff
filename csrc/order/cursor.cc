#include "order/cursor.h"

#include <utility>

namespace stoker {

std::optional<Unit> OrderCursor::row(uint64_t global_row) {
  const std::optional<LanePlace> place = order_.place(global_row);
  if (!place) return std::nullopt;
  return lane_unit(*place);
}

Unit OrderCursor::lane_unit(const LanePlace& place) {
  const StrideCursor::Draw draw = lane_at(place).stride.draw();
  return {draw.stream, units_.unit(draw.stream, order_.ticket(draw, place.in))};
}

const OrderCursor::Lane& OrderCursor::lane_at(const LanePlace& place) {
  // A seek is about 45 steps of bisection over all streams, a step about 10 comparisons.
  const uint64_t longest_walk = 64 + 8 * uint64_t{order_.num_streams()};
  const auto found = lanes_.find(place.in.lane);
  if (found != lanes_.end()) {
    Lane& lane = found->second;
    if (lane.epoch == place.in.epoch && lane.position <= place.position &&
        place.position - lane.position <= longest_walk) {
      for (; lane.position < place.position; ++lane.position) lane.stride.next();
      return lane;
    }
  }
  Lane lane{place.in.epoch, place.position, StrideCursor(order_.stride(place.in), place.position)};
  return lanes_.insert_or_assign(place.in.lane, std::move(lane)).first->second;
}

}  // namespace stoker
