// Stride scheduling: which stream draws next, so that every prefix keeps the weights.
//
// Waldspurger & Weihl, "Stride Scheduling", MIT/LCS/TM-528, 1995. Draw i of stream s is due at time
// (i + phase[s] / 2^32) / weight[s]. Draws come in due order, ties to the lower stream. Any prefix of n draws holds
// n * w[s] / sum(w) of stream s within 1 + S * w[s] / sum(w), S the number of streams. All arithmetic is exact.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/int128.h"

namespace stoker {

inline constexpr int kPhaseBits = 32;     // a phase is a fraction of a draw, in 2^-32
inline constexpr int kGridBits = 56;      // weights are scaled to a sum in (2^55, 2^56]
inline constexpr int kPositionBits = 40;  // positions, draws and tickets are below 2^40

/// The weights and phases of one lane. Immutable; safe to share between threads.
class Stride {
 public:
  /// `weights`: 0 <= sum <= 2^56, a stream of weight 0 never draws. `phases`: one a stream, below 2^32.
  Stride(std::vector<uint64_t> weights, std::vector<uint64_t> phases);

  /// Where the sequence stands after some draws.
  struct Position {
    std::vector<uint64_t> draws;  // of each stream so far
    uint32_t next_stream;         // the stream of the next draw
  };

  /// The position after `num_draws` < 2^40 draws: bisection on time, O(S log S), no state. Some weight must be > 0.
  Position seek(uint64_t num_draws) const;

  uint32_t num_streams() const { return static_cast<uint32_t>(weights_.size()); }
  uint64_t weight(uint32_t stream) const { return weights_[stream]; }

  /// Numerator of the due time of a draw: due = numerator / weight, in 2^-32 of a unit of time. Below 2^72.
  u128 due_numerator(uint32_t stream, uint64_t draw) const {
    return (static_cast<u128>(draw) << kPhaseBits) + phases_[stream];
  }

 private:
  uint64_t draws_before(uint32_t stream, uint64_t grid_time) const;
  uint64_t total_draws_before(uint64_t grid_time) const;

  std::vector<uint64_t> weights_;  // scaled by one power of two
  std::vector<uint64_t> phases_;
  uint64_t total_ = 0;  // sum of weights_
};

/// Walks the sequence of a Stride draw by draw, O(log S) each. Keeps a heap; not thread-safe.
class StrideCursor {
 public:
  /// Starts at position `num_draws` of `stride`.
  StrideCursor(const Stride& stride, uint64_t num_draws);

  struct Draw {
    uint32_t stream;
    uint64_t index;  // of the stream's draws
  };

  /// The draw at the current position.
  Draw draw() const { return {heap_.front().stream, heap_.front().index}; }

  /// Steps over it.
  void next();

 private:
  struct Entry {
    u128 due_numerator;
    uint64_t weight;
    uint64_t index;
    uint32_t stream;
  };
  static bool before(const Entry& a, const Entry& b);
  void sift_down(size_t hole);

  std::vector<Entry> heap_;  // a binary heap, the earliest draw in front
};

}  // namespace stoker
