// The shard reader on what a fuzzer found (tests/fuzz), and on shards that are flipped, cut and lengthened.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <filesystem>

#include "mds_files.h"
#include "order/key.h"
#include "shard_fuzz.h"

namespace stoker {
namespace {

using namespace testing_files;

// Puts what the index says in front of a shard of `lengths`, as read_fuzzed_shard() takes it.
Bytes fuzz_input(const ShardLengths& lengths, const Form& form, bool is_expanded) {
  const Bytes raw = raw_shard("web", 0, lengths, form);
  const Bytes file = form.compressed ? compress(raw, form.frame_bytes) : raw;
  Bytes out(8);
  out[0] = std::byte(form.other_column ? 4 : 0);
  out[1] = std::byte((form.compressed ? 1 : 0) | (is_expanded ? 2 : 0));
  const auto num_samples = static_cast<uint16_t>(lengths.size());
  const auto raw_bytes = static_cast<uint32_t>(raw.size());
  std::memcpy(out.data() + 2, &num_samples, 2);
  std::memcpy(out.data() + 4, &raw_bytes, 4);
  out.insert(out.end(), file.begin(), file.end());
  return out;
}

Bytes mutate(Bytes input, Rng& rng) {
  for (uint64_t n = 1 + rng.below(4); n > 0; --n) {
    const auto at = static_cast<std::ptrdiff_t>(rng.below(input.size() + 1));
    const auto place = input.begin() + at;
    switch (rng.below(5)) {
      case 0:
        if (place != input.end()) *place ^= std::byte(1U << rng.below(8));
        break;
      case 1:
        if (place != input.end()) *place = std::byte(rng.below(256));
        break;
      case 2:
        input.erase(place, place + std::min<std::ptrdiff_t>(input.end() - place, std::ptrdiff_t(1 + rng.below(8))));
        break;
      case 3:
        input.insert(place, 1 + rng.below(8), std::byte(rng.below(256)));
        break;
      case 4: {
        constexpr uint32_t kWords[] = {0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF};
        if (input.end() - place >= 4) std::memcpy(&*place, &kWords[rng.below(std::size(kWords))], 4);
        break;
      }
    }
  }
  return input;
}

/// Reads all files of a directory; returns how many are whole shards.
size_t count_whole(const std::string& directory) {
  size_t whole = 0;
  for (const auto& entry : std::filesystem::directory_iterator(directory))
    whole += read_fuzzed_shard(read_file(entry.path().string()));
  return whole;
}

TEST(Fuzz, TheSeedsAreWhole) {
  EXPECT_EQ(count_whole(STOKER_FUZZ "/seeds"), 28U);  // seven kinds of columns, raw and three ways of zstd
}

TEST(Fuzz, WhatTheFuzzerFoundRaisesNothingButItsErrors) {
  EXPECT_GT(count_whole(STOKER_FUZZ "/corpus"), 0U);  // one of each path through the reader
}

TEST(Fuzz, MutatedShardsRaiseNothingButTheirErrors) {
  Rng rng(key("fuzz"));
  const ShardLengths lengths = {3, 0, 300, 1, 70};
  const Form forms[] = {{},
                        {.other_column = true},
                        {.compressed = true, .frame_bytes = 64},
                        {.compressed = true, .frame_bytes = 0},
                        {.other_column = true, .compressed = true}};
  for (const Form& form : forms) {
    for (const bool is_expanded : {false, true}) {
      const Bytes whole = fuzz_input(lengths, form, is_expanded);
      ASSERT_TRUE(read_fuzzed_shard(whole));
      for (int trial = 0; trial < 1000; ++trial) read_fuzzed_shard(mutate(whole, rng));
    }
  }
}

}  // namespace
}  // namespace stoker
