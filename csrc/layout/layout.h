// Layout: from the order's units and the samples' lengths to rows of segments. Pure arithmetic, serial and cheap.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "layout/rows.h"
#include "order/cursor.h"
#include "order/order.h"
#include "order/sample_list.h"

namespace stoker {

/// Where layouts get lengths from.
class SampleLengths {
 public:
  virtual ~SampleLengths() = default;

  /// Entry i is the tokens of the shard's samples 0 to i together: as many entries as the order's shard has samples
  /// (`pad`, `pack`), or as end in its number of tokens (`concat`). Valid until the next call. Raises what
  /// opening the shard raises.
  virtual std::span<const uint32_t> token_ends(uint32_t stream, uint32_t shard) = 0;

  /// What the shard is called in errors.
  virtual std::string path(uint32_t stream, uint32_t shard) = 0;
};

enum class LayoutKind { kPad, kConcat, kPack };
enum class Overflow { kTruncate, kError, kSplit, kDrop };

struct LayoutSpec {
  LayoutKind kind = LayoutKind::kConcat;
  uint32_t seq_len = 0;
  std::vector<Overflow> overflow;  // `pad`, `pack`: what a sample longer than seq_len does, by stream

  // `pack` only.
  enum class Packing { kBestFit, kFoundry };
  Packing packing = Packing::kBestFit;
  uint32_t pack_window = 4096;   // samples of a window; kFoundry: of a raw batch
  uint32_t window_rows = 512;    // a window ends too when it has this many rows' worth of tokens; kFoundry: its rows
  std::vector<uint32_t> groups;  // by stream: rows hold samples of one group
  uint32_t pad_to_multiple = 1;  // kBestFit: tokens that a part of a sample takes are rounded up to it
  uint32_t max_samples_per_row = 0;           // kBestFit: 0: any number
  std::optional<uint32_t> max_leftover_bins;  // kFoundry
  uint32_t num_packers = 1;                   // kFoundry, of listed samples: batches go to them in turn
};

/// Where a lane of `pack` stands, so that it need not be walked from its first sample.
struct LaneHint {
  uint32_t lane = 0;
  uint64_t window_begin = 0;                     // position of the window's first sample among the lane's draws
  uint64_t rows_emitted = 0;                     // of the window
  std::vector<std::vector<uint64_t>> leftovers;  // kFoundry: bins left over before the window, as positions of the lane
};
using LaneHints = std::vector<LaneHint>;

/// A global row and the hints that stand there.
struct LayoutStart {
  uint64_t row = 0;
  std::shared_ptr<const LaneHints> hints;  // null: none
};

/// Emits global rows. Not thread-safe.
class Layout {
 public:
  virtual ~Layout() = default;

  /// Appends global row `row` to `out` and ends it. Cheapest where a caller's rows ascend.
  virtual void append_row(uint64_t row, Rows& out) = 0;

  /// Goes a part of the way to a row that will be asked for, where that is far, in a few milliseconds. Returns whether
  /// it is there.
  virtual bool approach(uint64_t row) = 0;

  /// See UnitMap.
  virtual std::vector<BlockChange> take_changes() = 0;

  /// Changes that take_changes() does not tell yet. Valid until the next call.
  virtual std::span<const BlockChange> coming() const = 0;

  /// Where the lanes that rows were asked of stand before global row `row`, to start there; null where a layout needs
  /// no hints.
  virtual std::shared_ptr<const LaneHints> hints(uint64_t row) = 0;
};

/// `order` and `lengths` must outlive the layout. With a `list` the samples are those, and not the order's.
std::unique_ptr<Layout> make_layout(const LayoutSpec& spec, const Order& order, SampleLengths& lengths,
                                    const LayoutStart& start = {}, std::shared_ptr<SampleList> list = nullptr);

}  // namespace stoker
