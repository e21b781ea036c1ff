// The layouts whose rows are units of the order: `pad` and `concat`. They have no state.
#pragma once

#include "layout/layout.h"

namespace stoker {

/// `pad`: one sample a row.
class PadLayout final : public Layout {
 public:
  PadLayout(const LayoutSpec& spec, const Order& order, SampleLengths& lengths)
      : spec_(spec), order_(order), lengths_(lengths), cursor_(order) {}
  void append_row(uint64_t row, Rows& out) override;
  std::vector<BlockChange> take_changes() override { return cursor_.take_changes(); }
  std::span<const BlockChange> coming() const override { return cursor_.coming(); }
  bool approach(uint64_t /*row*/) override { return true; }
  std::shared_ptr<const LaneHints> hints(uint64_t /*row*/) override { return nullptr; }

 private:
  LayoutSpec spec_;
  const Order& order_;
  SampleLengths& lengths_;
  OrderCursor cursor_;
  std::vector<ShardRange> ranges_;  // of the row at hand
};

/// `concat`: row U of a stream is tokens [U * seq_len, (U + 1) * seq_len) of its endless line.
class ConcatLayout final : public Layout {
 public:
  ConcatLayout(const Order& order, SampleLengths& lengths) : order_(order), lengths_(lengths), cursor_(order) {}
  void append_row(uint64_t row, Rows& out) override;
  std::vector<BlockChange> take_changes() override { return cursor_.take_changes(); }
  std::span<const BlockChange> coming() const override { return cursor_.coming(); }
  bool approach(uint64_t /*row*/) override { return true; }
  std::shared_ptr<const LaneHints> hints(uint64_t /*row*/) override { return nullptr; }

 private:
  const Order& order_;
  SampleLengths& lengths_;
  OrderCursor cursor_;
  std::vector<ShardRange> ranges_;  // of the row at hand
};

}  // namespace stoker
