// Layout: from the order's units and the samples' lengths to rows of segments. Pure arithmetic, serial and cheap.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "layout/rows.h"
#include "order/cursor.h"
#include "order/order.h"

namespace stoker {

/// Where layouts get lengths from.
class SampleLengths {
 public:
  virtual ~SampleLengths() = default;

  /// Entry i is the tokens of the shard's samples 0 to i together: as many entries as the order's shard has samples
  /// (`pad`), or as end in its number of tokens (`concat`). Valid while the row at hand is made. Raises what opening
  /// the shard raises.
  virtual std::span<const uint32_t> token_ends(uint32_t stream, uint32_t shard) = 0;
};

enum class LayoutKind { kPad, kConcat };
enum class Overflow { kTruncate, kError };

struct LayoutSpec {
  LayoutKind kind = LayoutKind::kConcat;
  uint32_t seq_len = 0;
  Overflow overflow = Overflow::kTruncate;  // `pad`: what a sample longer than seq_len does
};

/// Emits global rows. Not thread-safe.
class Layout {
 public:
  virtual ~Layout() = default;

  /// Appends global row `row` to `out` and ends it. Cheapest where a caller's rows ascend.
  virtual void append_row(uint64_t row, Rows& out) = 0;

  /// See UnitMap.
  virtual std::vector<BlockChange> take_changes() = 0;
};

/// `order` and `lengths` must outlive the layout.
std::unique_ptr<Layout> make_layout(const LayoutSpec& spec, const Order& order, SampleLengths& lengths);

}  // namespace stoker
