// `pack`: samples of any streams in one row, window by window.
//
// A lane's samples are cut in windows of its next pack_window samples, fewer where these have window_rows rows' worth
// of tokens before. The rows of a window depend on nothing but its samples; they are emitted in a keyed shuffled order,
// so that length does not correlate with time. Dropped and empty samples are counted with the next row that is emitted.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <unordered_map>
#include <vector>

#include "layout/best_fit.h"
#include "layout/foundry_packer.h"
#include "layout/foundry_rows.h"
#include "layout/layout.h"
#include "layout/sample_unit.h"

namespace stoker {

/// A lane is walked from its first sample to the row that is asked of it, or from its hint; then from row to row. A row
/// that lies before the one asked for last walks it anew.
class PackLayout final : public Layout {
 public:
  PackLayout(const LayoutSpec& spec, const Order& order, SampleLengths& lengths, const LayoutStart& start);
  void append_row(uint64_t row, Rows& out) override;
  bool approach(uint64_t row) override;
  std::vector<BlockChange> take_changes() override { return std::exchange(changes_, {}); }
  std::span<const BlockChange> coming() const override { return cursor_.coming(); }
  std::shared_ptr<const LaneHints> hints(uint64_t row) override;

 private:
  /// Rows one behind the other, in the order in which they are emitted.
  class WindowRows {
   public:
    size_t size() const { return order_.size(); }
    std::span<const Part> operator[](size_t i) const {
      return std::span(parts_).subspan(begins_[order_[i]], begins_[order_[i] + 1] - begins_[order_[i]]);
    }
    void add(std::span<const Part> row);

    /// All rows at once: `row_of` each part, rows holding them in the order of `sorted`, emitted in that of `order`.
    WindowRows(std::span<const Part> parts, const BestFit::Result& packed, std::vector<uint32_t> order);
    WindowRows() = default;

   private:
    std::vector<Part> parts_;
    std::vector<uint32_t> begins_{0};  // of each row among parts_, and the end
    std::vector<uint32_t> order_;      // numbers of rows
  };
  struct Lane {
    uint32_t number = 0;
    uint64_t row = 0;  // of the lane: the one emitted next
    uint64_t window_begin = 0;
    uint64_t window_end = 0;  // where the next window begins
    WindowRows rows;
    uint64_t num_emitted = 0;  // of rows
    std::vector<Unplaced> unplaced;
    std::vector<BlockChange> ends;  // blocks that were left while the window was drawn: its rows read them
    // kFoundry: what was left over before the window and after it, of samples by their positions.
    std::vector<FoundryPacker::Bin> bins_before;
    FoundryLeftovers left;
  };

  Lane& lane_at_or_before(uint32_t number, uint64_t lane_row);
  void start(Lane& lane, const LaneHint& hint);
  void step(Lane& lane, uint64_t lane_row);
  void open_window(Lane& lane);
  void pack_best_fit(Lane& lane);
  void pack_as_foundry(Lane& lane);
  void append_sample(uint32_t lane, uint64_t position, std::vector<Part>& parts, std::vector<Unplaced>& unplaced);
  void restore_leftovers(Lane& lane, const LaneHint& hint);

  const LayoutSpec spec_;
  const Order& order_;
  SampleLengths& lengths_;
  const LayoutStart start_;
  OrderCursor cursor_;
  BestFit best_fit_;
  std::unordered_map<uint32_t, Lane> lanes_;
  std::vector<uint64_t> dropped_in_a_row_;  // by stream: samples, since the last one that was not dropped
  std::vector<BlockChange> changes_;
  std::vector<ShardRange> ranges_;  // of the sample at hand
};

}  // namespace stoker
