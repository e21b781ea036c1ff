#include "layout/foundry_packer.h"

#include <algorithm>
#include <iterator>
#include <utility>

namespace stoker {

std::vector<FoundryPacker::Bin> FoundryPacker::pack(std::vector<Example> examples) {
  std::stable_sort(examples.begin(), examples.end(),
                   [](const Example& a, const Example& b) { return a.size > b.size; });
  const auto missing = [&] { return num_rows_ > bins_.size() ? num_rows_ - bins_.size() : 0; };
  const bool cannot_fill = examples.size() < missing();
  for (size_t i = 0; i < examples.size(); ++i) {
    const Example& example = examples[i];
    auto place = bins_.end();
    if (!cannot_fill && examples.size() - i != missing())
      place =
          std::find_if(bins_.begin(), bins_.end(), [&](const Bin& bin) { return bin.size + example.size <= seq_len_; });
    if (place == bins_.end()) {
      bins_.push_back({example.size, {example.number}});
      continue;
    }
    place->size += example.size;
    place->examples.push_back(example.number);
    std::rotate(place, place + 1, bins_.end());
  }
  std::stable_sort(bins_.begin(), bins_.end(), [](const Bin& a, const Bin& b) { return a.size > b.size; });
  const auto split = bins_.begin() + static_cast<ptrdiff_t>(std::min<size_t>(num_rows_, bins_.size()));
  std::vector<Bin> rows(std::make_move_iterator(bins_.begin()), std::make_move_iterator(split));
  bins_.erase(bins_.begin(), split);
  dropped_.clear();
  if (max_leftover_bins_ && bins_.size() > *max_leftover_bins_) {
    const auto kept = bins_.begin() + static_cast<ptrdiff_t>(*max_leftover_bins_);
    dropped_.assign(std::make_move_iterator(kept), std::make_move_iterator(bins_.end()));
    bins_.erase(kept, bins_.end());
  }
  return rows;
}

}  // namespace stoker
