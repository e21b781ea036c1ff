#include "shard_fuzz.h"

// NOLINTNEXTLINE: libFuzzer names it
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  stoker::read_fuzzed_shard(std::as_bytes(std::span(data, size)));
  return 0;
}
