// The inside of one stream: which unit a ticket is, and which parts of which shards a unit is.
//
// A stream's shards, in one keyed order, pass after pass, form an endless line of things (samples, or tokens for
// `concat`). Unit K of the line is the things [K * unit, (K + 1) * unit). A pass is cut in L spans side by side; the
// shard fragments of a span are visited in keyed order, and the visit is shuffled block by block.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/range.h"

namespace stoker {

/// What the order needs to know of a stream.
struct StreamSizes {
  std::string name;                   // unique; part of every key
  std::vector<uint64_t> shard_sizes;  // in file order: samples, or tokens for `concat`; zeros allowed
};

/// A part of a shard, in the shard's own things.
struct ShardRange {
  uint32_t shard;  // in file order
  Range things;
};

/// A span of a pass as it is visited: whole fragments of shards, one after the other.
class Visit {
 public:
  /// `fragments`: units of the line, in the order of the visit, none empty.
  explicit Visit(std::vector<Range> fragments);

  uint64_t size() const { return ends_.empty() ? 0 : ends_.back(); }

  /// The unit at place `y` < size() of the visit.
  uint64_t unit(uint64_t y) const;

  /// The units at places [begin, end) of the visit, as fragments.
  std::vector<Range> cut(Range places) const;

 private:
  std::vector<uint64_t> first_;  // first unit of each fragment
  std::vector<uint64_t> ends_;   // where each fragment ends in the visit
};

/// Immutable; safe to share between threads.
class StreamOrder {
 public:
  struct Options {
    uint64_t seed;
    uint32_t lanes;          // 1 where shuffle is off
    uint64_t unit;           // things a unit: 1, or seq_len for `concat`
    bool shuffle;            // off: file order, ticket = unit
    uint32_t shuffle_block;  // units that are shuffled together
  };

  StreamOrder(StreamSizes sizes, const Options& options);

  const std::string& name() const { return name_; }
  uint64_t total() const { return first_.back(); }  // things a pass

  /// The pass of a unit or ticket: that in which it begins.
  uint64_t pass(uint64_t unit_or_ticket) const;

  /// The units (and tickets) of a pass: those that begin in it.
  Range pass_units(uint64_t pass) const;

  /// Whether all lanes shuffle a pass of `units` as one block.
  bool is_one_block(Range units) const { return units.size() <= options_.shuffle_block; }

  /// Span `slot` of a pass, visited.
  Visit visit(uint64_t pass, uint32_t slot) const;

  /// Keys of a block's permutation.
  uint64_t pass_key(uint64_t pass) const;
  uint64_t block_key(uint64_t pass, uint32_t slot, uint64_t block) const;

  /// Unit `unit` of the line as parts of shards, in order, none empty. Appends to `out`.
  void append_ranges(uint64_t unit, std::vector<ShardRange>& out) const { append_things(units_to_things(unit), out); }

  /// The shards under a range of units.
  void append_ranges(Range units, std::vector<ShardRange>& out) const;

  const Options& options() const { return options_; }

 private:
  Range units_to_things(uint64_t unit) const { return {unit * options_.unit, (unit + 1) * options_.unit}; }
  void append_things(Range things, std::vector<ShardRange>& out) const;

  std::string name_;
  Options options_;
  std::vector<uint32_t> shards_;  // in the keyed order of all passes
  std::vector<uint64_t> first_;   // things before each of shards_ in a pass; last: all of them
};

}  // namespace stoker
