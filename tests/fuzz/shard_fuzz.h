// One fuzz input for the shard reader, as libFuzzer and the test that replays the corpus run it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace stoker {

/// Takes 8 bytes of what the index says, and a file; reads every token by every way there is. What is wrong with the
/// bytes must raise CorruptShardError; anything else ends the process. Returns whether the shard was whole.
///
/// Byte 0: columns (see kSchemas), 1: bit 0 zstd, bit 1 expanded to a file, 2-3: samples, 4-7: raw bytes where it is
/// zstd, below 2^20.
bool read_fuzzed_shard(std::span<const std::byte> input);

}  // namespace stoker
