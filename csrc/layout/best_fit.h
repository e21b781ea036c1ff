// Best-fit decreasing: pieces of samples into rows, by their sizes alone.
//
// Pieces come longest first, ties as given. Each goes into the row with the least room that holds it, of rows with
// equal room the one that came to that room last; if there is none, into a new row. For rows of language models: Ding
// et al., "Fewer Truncations Improve Language Modeling", ICML 2024.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace stoker {

/// Numbers below a limit, of which the smallest one from a given number on is found in O(log limit).
class NumberSet {
 public:
  explicit NumberSet(uint32_t limit);

  void insert(uint32_t number);
  void erase(uint32_t number);

  /// The smallest member that is `number` or more; `limit` if there is none.
  uint32_t at_least(uint32_t number) const;

 private:
  uint32_t limit_;
  // A bit a number; in each level above, a bit for each word of the one below that is not 0.
  std::vector<std::vector<uint64_t>> levels_;
};

/// Not thread-safe. O(log seq_len) a piece, and O(seq_len) a call for sorting them.
class BestFit {
 public:
  /// Rows of `seq_len` tokens and `max_pieces` pieces at most; 0: any number of pieces.
  BestFit(uint32_t seq_len, uint32_t max_pieces);

  /// Where pieces go.
  struct Result {
    std::vector<uint32_t> row_of;  // of each piece; rows are numbered as they are opened
    std::vector<uint32_t> sorted;  // the pieces, longest first: so rows hold them
    uint32_t num_rows = 0;
  };

  /// Packs pieces of `sizes` tokens, each 1 to seq_len.
  Result pack(std::span<const uint32_t> sizes);

 private:
  static constexpr uint32_t kNone = UINT32_MAX;

  std::vector<uint32_t> sort(std::span<const uint32_t> sizes);
  void open_to_more(uint32_t row, uint32_t room);

  const uint32_t seq_len_;
  const uint32_t max_pieces_;
  NumberSet rooms_;               // of rows that take more
  std::vector<uint32_t> newest_;  // by room: the row that came to it last
  std::vector<uint32_t> older_;   // by row: the one that came to its room before
  std::vector<uint32_t> counts_;  // scratch of sort(), by size
};

}  // namespace stoker
