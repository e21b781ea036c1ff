// LLM Foundry's packer, for rows that equal its own (llm-foundry 0.22, `BinPackCollator` in data/packing.py).
//
// A call gets the examples of one raw batch and gives the rows of one batch. Examples come largest first, ties as
// given; each goes into the first bin that has room, which moves to the end of the bins, or into a new bin. Near the
// end every example opens a bin, so that there are as many as rows. The fullest bins are the rows; the others are left
// over for the next call, in order of fill, or dropped beyond a limit.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

namespace stoker {

/// Not thread-safe.
class FoundryPacker {
 public:
  /// Examples that share a row, in the order in which it holds them.
  struct Bin {
    uint64_t size = 0;  // tokens
    std::vector<uint64_t> examples;
  };
  struct Example {
    uint64_t number;  // what tells it from others
    uint32_t size;    // tokens, at most seq_len
  };

  /// Rows of `seq_len` tokens, `num_rows` a call. At most `max_leftover_bins` bins are left over; nothing: all.
  FoundryPacker(uint32_t num_rows, uint32_t seq_len, std::optional<uint32_t> max_leftover_bins)
      : num_rows_(num_rows), seq_len_(seq_len), max_leftover_bins_(max_leftover_bins) {}

  /// The next rows, the fullest first. Fewer than num_rows where examples and bins left over are fewer.
  std::vector<Bin> pack(std::vector<Example> examples);

  const std::vector<Bin>& leftovers() const { return bins_; }

  /// The bins that the last call has dropped.
  const std::vector<Bin>& dropped() const { return dropped_; }
  void set_leftovers(std::vector<Bin> bins) { bins_ = std::move(bins); }

 private:
  const uint32_t num_rows_;
  const uint32_t seq_len_;
  const std::optional<uint32_t> max_leftover_bins_;
  std::vector<Bin> bins_;  // left over
  std::vector<Bin> dropped_;
};

}  // namespace stoker
