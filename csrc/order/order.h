// The order of a run: which (stream, ticket) global row R is. A pure function; no array over samples exists.
//
// The contract is `tests/model/order.py` (ORDER_VERSION 1): every key, tie and width here is the model's.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "order/stream_order.h"
#include "order/stride.h"

namespace stoker {

struct OrderSpec {
  std::vector<StreamSizes> streams;  // in the order of their names
  std::vector<uint64_t> counts;      // finite: units an epoch; endless: rates, sum <= 2^56
  uint64_t seed = 0;
  uint32_t lanes = 1;         // L >= 1
  uint64_t global_batch = 1;  // G: rows a step over all ranks
  bool finite = true;         // an epoch is exactly counts[s] units of stream s
  uint64_t unit = 1;          // things a unit
  bool drop_last = true;
  bool shuffle = true;
  uint32_t shuffle_block = 16384;
  std::vector<uint32_t> blocks_ahead;  // by stream: of so many blocks behind the next one UnitMap tells; empty: of none

  uint64_t epoch_units() const;  // N
};

/// One lane's part of one epoch (endless orders: epoch 0).
struct LaneEpoch {
  uint32_t lane;
  uint64_t epoch;
};

/// Where a global row stands among the lanes.
struct LanePlace {
  LaneEpoch in;
  uint64_t position;  // of the lane's draws in the epoch
};

/// Immutable; safe to share between threads.
class Order {
 public:
  /// Checks the specification; raises ArgumentError.
  explicit Order(OrderSpec spec);

  /// Without its streams: see stream().
  const OrderSpec& spec() const { return spec_; }
  uint32_t lanes() const { return lanes_; }  // 1 where shuffle is off
  uint32_t num_streams() const { return static_cast<uint32_t>(streams_.size()); }
  const StreamOrder& stream(uint32_t s) const { return streams_[s]; }
  uint32_t blocks_ahead(uint32_t s) const { return spec_.blocks_ahead.empty() ? 0 : spec_.blocks_ahead[s]; }

  /// Finite orders: the place of a global row, nothing for an empty row. With drop_last the epochs follow each other
  /// without a gap; otherwise each takes ceil(N/G)*G rows and begins at lane 0.
  std::optional<LanePlace> place(uint64_t row) const;

  /// Finite orders: how many draws of a stream a lane makes in an epoch.
  uint64_t lane_count(uint32_t stream, LaneEpoch in) const;

  /// The stride sequence of a lane's epoch.
  Stride stride(LaneEpoch in) const;

  /// The ticket of a draw, its index counted in the lane's epoch.
  uint64_t ticket(StrideCursor::Draw draw, LaneEpoch in) const;

 private:
  uint64_t dealing_start(uint32_t stream, uint64_t epoch) const;
  std::vector<uint64_t> phases(uint32_t lane) const;

  OrderSpec spec_;
  uint32_t lanes_;
  uint64_t epoch_units_;
  std::vector<StreamOrder> streams_;
  std::vector<uint64_t> counts_before_;  // sum of counts of the streams before

  // Phases. Frequent streams (one draw or more in L rows) start where one common stride sequence stands; rarer ones
  // take the L strata of [0, 1) in keyed order.
  std::vector<uint64_t> base_phases_;
  std::vector<uint32_t> frequent_;             // the frequent streams
  std::optional<Stride> mix_;                  // their common sequence
  std::vector<std::vector<uint32_t>> strata_;  // of each rarer stream, empty for frequent ones
};

}  // namespace stoker
