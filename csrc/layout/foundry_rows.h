// LLM Foundry's packer over parts of samples: the rows of one raw batch after the other.
#pragma once

#include <cstdint>
#include <unordered_map>
#include <vector>

#include "layout/foundry_packer.h"
#include "layout/layout.h"
#include "layout/sample_unit.h"

namespace stoker {

/// Parts by their number.
using NumberedParts = std::unordered_map<uint64_t, Part>;

/// What a packer has left over, and the parts that it is of.
struct FoundryLeftovers {
  std::vector<FoundryPacker::Bin> bins;
  NumberedParts parts;
};

/// What comes of a raw batch.
struct FoundryRows {
  std::vector<std::vector<Part>> rows;
  std::vector<Part> dropped;  // of bins that were too many to be left over
};

/// Packs the parts of a raw batch, `numbers` of `parts`, with what was left over before, and leaves over what it does.
FoundryRows pack_as_foundry(const LayoutSpec& spec, const std::vector<uint64_t>& numbers, const NumberedParts& parts,
                            FoundryLeftovers& leftovers);

}  // namespace stoker
