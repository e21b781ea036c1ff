// Walks an order: the units of global rows, or of one lane, cheaply where the walk goes forward.
#pragma once

#include <cstdint>
#include <optional>
#include <unordered_map>
#include <vector>

#include "order/order.h"
#include "order/stride.h"
#include "order/unit_map.h"

namespace stoker {

/// A unit of a stream's endless line.
struct Unit {
  uint32_t stream;
  uint64_t index;
};

/// Not thread-safe. Any row can be asked for; a step forward costs O(log streams), a jump O(streams log streams).
class OrderCursor {
 public:
  /// `order` must outlive the cursor.
  explicit OrderCursor(const Order& order) : order_(order), units_(order) {}

  /// Finite orders: the unit of a global row; nothing for an empty row.
  std::optional<Unit> row(uint64_t global_row);

  /// The unit at a position of a lane's epoch (endless orders: epoch 0).
  Unit lane_unit(const LanePlace& place);

  /// See UnitMap.
  std::vector<BlockChange> take_changes() { return units_.take_changes(); }
  std::span<const BlockChange> coming() const { return units_.coming(); }

 private:
  struct Lane {
    uint64_t epoch;
    uint64_t position;
    StrideCursor stride;
  };
  const Lane& lane_at(const LanePlace& place);

  const Order& order_;
  UnitMap units_;
  std::unordered_map<uint32_t, Lane> lanes_;
};

}  // namespace stoker
