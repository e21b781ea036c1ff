#include "layout/foundry_rows.h"

#include <utility>

namespace stoker {

FoundryRows pack_as_foundry(const LayoutSpec& spec, const std::vector<uint64_t>& numbers, const NumberedParts& parts,
                            FoundryLeftovers& leftovers) {
  NumberedParts all = std::exchange(leftovers.parts, {});
  all.insert(parts.begin(), parts.end());
  std::vector<FoundryPacker::Example> examples;
  examples.reserve(numbers.size());
  for (const uint64_t number : numbers) examples.push_back({number, all.at(number).segment.size()});
  FoundryPacker packer(spec.window_rows, spec.seq_len, spec.max_leftover_bins);
  packer.set_leftovers(std::move(leftovers.bins));
  FoundryRows out;
  for (const FoundryPacker::Bin& bin : packer.pack(std::move(examples))) {
    std::vector<Part>& row = out.rows.emplace_back();
    for (const uint64_t number : bin.examples) row.push_back(all.at(number));
  }
  for (const FoundryPacker::Bin& bin : packer.dropped())
    for (const uint64_t number : bin.examples) out.dropped.push_back(all.at(number));
  leftovers.bins = packer.leftovers();
  for (const FoundryPacker::Bin& bin : leftovers.bins)
    for (const uint64_t number : bin.examples) leftovers.parts.emplace(number, all.at(number));
  return out;
}

}  // namespace stoker
