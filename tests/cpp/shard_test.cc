#include "shard/shard.h"

#include <gtest/gtest.h>

#include <cstring>
#include <functional>

#include "base/error.h"
#include "mds_files.h"
#include "shard/shard_store.h"

namespace stoker {
namespace {

using namespace testing_files;

const ShardLengths kLengths = {3, 0, 300, 1, 255, 256, 7};

/// Loads all pieces of a body, as the engine would.
void load_all(const Shard& shard) {
  for (uint32_t i = 0; i < shard.body().num_pieces(); ++i) shard.load(i);
}

void expect_tokens(const Shard& shard, const std::string& stream, uint32_t number, const ShardLengths& lengths) {
  ASSERT_EQ(shard.num_samples(), lengths.size());
  uint32_t end = 0;
  for (uint32_t i = 0; i < lengths.size(); ++i) {
    EXPECT_EQ(shard.token_ends()[i], end += lengths[i]);
    const TokenArray tokens = shard.parse(i).tokens;
    ASSERT_EQ(tokens.size, lengths[i]);
    ASSERT_EQ(tokens.type, IntegerType::kU16);
    for (uint32_t k = 0; k < tokens.size; ++k) {
      uint16_t token;
      std::memcpy(&token, tokens.values + 2 * k, 2);
      ASSERT_EQ(token, token_at(stream, number, i, k));
    }
  }
}

void expect_says(const std::string& message, const std::string& part) {
  EXPECT_NE(message.find(part), std::string::npos) << message;
}

struct FormCase {
  const char* name;
  Form form;
  friend void PrintTo(const FormCase& c, std::ostream* out) { *out << c.name; }
};

const auto kName = [](const auto& test) { return test.param.name; };

class ShardForms : public testing::TestWithParam<FormCase> {};
class CompressedForms : public testing::TestWithParam<FormCase> {};

TEST_P(ShardForms, ReadsBackWhatWasWritten) {
  const TemporaryDirectory directory;
  const std::vector<ShardLengths> shards = {kLengths, {5}, {}};
  ShardStore store({write_stream(directory, "web", shards, GetParam().form)}, 1 << 20);
  for (uint32_t i = 0; i < shards.size(); ++i) {
    const std::shared_ptr<const Shard> shard = store.get({0, i});
    load_all(*shard);
    expect_tokens(*shard, "web", i, shards[i]);
    EXPECT_EQ(store.get({0, i}), shard);
    if (!shards[i].empty()) {
      EXPECT_EQ(shard->read_sample(0).size(), shard->bytes_of({0, 1}).size());
    }
  }
  EXPECT_EQ(store.get({0, 0})->longest_sample(), 300U);
}

TEST_P(CompressedForms, AreExpandedIntoFilesOnce) {
  const TemporaryDirectory directory;
  StreamFiles files = write_stream(directory, "web", {kLengths}, GetParam().form);
  files.expand_directory = directory / "cache/web";
  for (const uint32_t pieces : {1U, 0U}) {  // the second store finds the file
    ShardStore store({files}, 1 << 20);
    const std::shared_ptr<const Shard> shard = store.get({0, 0});
    EXPECT_EQ(shard->body().num_pieces(), pieces);
    load_all(*shard);
    expect_tokens(*shard, "web", 0, kLengths);
    const std::filesystem::directory_iterator expanded(files.expand_directory);
    EXPECT_EQ(std::distance(begin(expanded), end(expanded)), 1);
  }
}

const FormCase kCompressed[] = {{"Frames", {.compressed = true, .frame_bytes = 100}},
                                {"OneFrame", {.compressed = true}},
                                {"FrameOfUnknownSize", {.compressed = true, .frame_bytes = 0}},
                                {"FramesScanned", {.other_column = true, .compressed = true, .frame_bytes = 64}}};
const FormCase kRaw[] = {{"Raw", {}}, {"RawBytes", {.bytes_column = true}}, {"RawScanned", {.other_column = true}}};

INSTANTIATE_TEST_SUITE_P(Raw, ShardForms, testing::ValuesIn(kRaw), kName);
INSTANTIATE_TEST_SUITE_P(Zstd, ShardForms, testing::ValuesIn(kCompressed), kName);
INSTANTIATE_TEST_SUITE_P(Zstd, CompressedForms, testing::ValuesIn(kCompressed), kName);

TEST(Shard, PiecesOfAFramedShardAreItsFramesAndUnloadAndLoadAgain) {
  const TemporaryDirectory directory;
  const ShardLengths lengths(200, 100);
  const size_t page = page_size_bytes();
  ShardStore store({write_stream(directory, "web", {lengths}, {.compressed = true, .frame_bytes = 2 * page})}, 0);
  const std::shared_ptr<const Shard> shard = store.get({0, 0});
  const uint64_t raw_bytes = shard->bytes_of({0, 200}).end;
  ASSERT_EQ(shard->body().num_pieces(), (raw_bytes + 2 * page - 1) / (2 * page));
  EXPECT_EQ(shard->body().piece_at(2 * page - 1), 0U);
  EXPECT_EQ(shard->body().piece_at(2 * page), 1U);
  load_all(*shard);
  shard->unload(1);
  EXPECT_EQ(shard->body().data()[2 * page], std::byte{0});
  shard->load(1);
  expect_tokens(*shard, "web", 0, lengths);
}

/// Damages one shard file and says how opening or parsing it must fail.
class DamagedShard : public testing::Test {
 protected:
  std::string failure(const std::function<void(Bytes&)>& damage, const Form& form = {}) {
    const TemporaryDirectory directory;
    StreamFiles files = write_stream(directory, "web", {kLengths}, form);
    StreamFiles::Entry& entry = files.shards[0];
    const std::string path = files.directory + "/" + (form.compressed ? entry.zip_basename : entry.raw_basename);
    Bytes bytes = read_file(path);
    damage(bytes);
    write_file(path, bytes);
    if (!keep_size_) (form.compressed ? entry.zip_bytes : entry.raw_bytes) = bytes.size();
    try {
      ShardStore store({files}, 1 << 20);
      const std::shared_ptr<const Shard> shard = store.get({0, 0});
      load_all(*shard);
      for (uint32_t i = 0; i < shard->num_samples(); ++i) shard->parse(i);
    } catch (const CorruptShardError& error) {
      EXPECT_EQ(error.path, path);
      expect_says(error.what(), "stream \"web\": ");
      expect_says(error.what(), path);
      return error.what();
    }
    return "no error";
  }

  bool keep_size_ = false;  // whether the index keeps the size of the undamaged file
};

void put_u32(Bytes& bytes, size_t at, uint32_t value) { std::memcpy(bytes.data() + at, &value, 4); }

TEST_F(DamagedShard, AFileOfAnotherSizeIsRefused) {
  keep_size_ = true;
  expect_says(failure([](Bytes& b) { b.pop_back(); }), "bytes long but index.json says");
  expect_says(failure([](Bytes& b) { b.push_back({}); }), "bytes long but index.json says");
}

TEST_F(DamagedShard, AnotherSampleCountIsRefused) {
  expect_says(failure([](Bytes& b) { put_u32(b, 0, 6); }), "holds 6 samples but index.json says 7");
}

TEST_F(DamagedShard, OffsetsThatFallOrLeaveTheFileAreRefused) {
  expect_says(failure([](Bytes& b) { put_u32(b, 4, 8); }), "inside its own header");
  expect_says(failure([](Bytes& b) { put_u32(b, 8, 4); }), "before it begins");
  expect_says(failure([](Bytes& b) { put_u32(b, 12, 0xFFFFFFFF); }), "before it begins");
  expect_says(failure([](Bytes& b) { b.resize(b.size() + 4); }), "last sample end at byte");
  expect_says(failure([](Bytes& b) { b.resize(20); }), "too few for the offsets");
}

TEST_F(DamagedShard, ASampleOfAnImpossibleSizeIsRefused) {
  expect_says(failure([](Bytes& b) { put_u32(b, 8, 70); }), "which no sample of these columns can be");
}

TEST_F(DamagedShard, AnArrayHeaderThatDisagreesIsRefused) {
  const size_t header = 4 + 4 * 8 + 33 + 4;  // of sample 0: count, offsets, config, size word
  expect_says(failure([&](Bytes& b) { b[header] = std::byte{8}; }), "2 dimensions");
  expect_says(failure([&](Bytes& b) { b[header] = std::byte{7}; }), "shorter than its header");
  expect_says(failure([&](Bytes& b) { b[header + 1] = std::byte{2}; }), "states 2 values");
}

TEST_F(DamagedShard, ASizeWordThatDisagreesIsRefused) {
  const size_t size_word = 4 + 4 * 8 + 33;
  expect_says(failure([&](Bytes& b) { put_u32(b, size_word, 0xFFFFFFFF); }), "has a column of 4294967295 bytes");
  expect_says(failure([&](Bytes& b) { put_u32(b, size_word, 3); }), "ndarray");
}

TEST_F(DamagedShard, CorruptZstdIsRefused) {
  const Form frames{.compressed = true, .frame_bytes = 128};
  expect_says(failure([](Bytes& b) { b[0] = std::byte{0}; }, frames), "is not valid zstd data");
  expect_says(failure([](Bytes& b) { b[b.size() - 1] ^= std::byte{1}; }, frames), "has a corrupt zstd frame");
  expect_says(failure([](Bytes& b) { b.resize(b.size() / 2); }, frames), "has no whole zstd frame");
  expect_says(failure([](Bytes& b) { b.resize(20); }, frames), "ends before all of the shard is decompressed");
  expect_says(failure([](Bytes& b) { b.insert(b.end(), b.begin(), b.end()); }, frames), "claims more than");
  expect_says(failure([](Bytes& b) { b = compress(Bytes(1 << 16), 0); }, frames), "holds 0 samples");
  const Form unknown{.compressed = true, .frame_bytes = 0};
  expect_says(failure([](Bytes& b) { b[b.size() - 1] ^= std::byte{1}; }, unknown), "has a corrupt zstd frame");
  expect_says(failure([](Bytes& b) { b.resize(b.size() - 5); }, unknown), "has no whole zstd frame");
}

TEST_F(DamagedShard, AFrameThatClaimsTerabytesIsRefused) {
  const auto damage = [](Bytes& b) {
    // Behind the real frame: magic, a header with 8 bytes of content size, a last raw block of 0 bytes.
    for (const int byte : {0x28, 0xB5, 0x2F, 0xFD, 0xE0, 0, 0, 0, 0, 0, 4, 0, 0, 1, 0, 0}) b.push_back(std::byte(byte));
  };
  expect_says(failure(damage, {.compressed = true}), "claims more than");
}

TEST(ExpandedShard, WhatIsDamagedInTheCacheIsNamedAndRemovedAndExpandedAgain) {
  const TemporaryDirectory directory;
  StreamFiles files = write_stream(directory, "web", {kLengths}, {.compressed = true});
  files.expand_directory = directory / "cache";
  const auto expand = [&] {
    ShardStore store({files}, 0);
    const std::shared_ptr<const Shard> shard = store.get({0, 0});
    load_all(*shard);
    expect_tokens(*shard, "web", 0, kLengths);
  };
  expand();
  const std::string path = std::filesystem::directory_iterator(files.expand_directory)->path().string();
  Bytes bytes = read_file(path);
  bytes[bytes.size() - 2 * 7 - 1] = std::byte{9};  // the shape of the last sample
  write_file(path, bytes);
  ShardStore store({files}, 0);
  const std::shared_ptr<const Shard> shard = store.get({0, 0});
  try {
    shard->parse(6);
    FAIL();
  } catch (const CorruptShardError& error) {
    EXPECT_EQ(error.path, path);
    expect_says(error.what(), "stream \"web\": sample 6 of " + path);
    expect_says(error.what(), "It was removed, and will be expanded again from");
  }
  EXPECT_FALSE(std::filesystem::exists(path));
  EXPECT_TRUE(shard->is_retired());
  expand();
}

TEST(ShardFiles, ADecompressedFileBesideTheIndexIsUsed) {
  const TemporaryDirectory directory;
  StreamFiles files = write_stream(directory, "web", {kLengths}, {.compressed = true});
  std::filesystem::remove(files.directory + "/" + files.shards[0].zip_basename);
  write_file(files.directory + "/" + files.shards[0].raw_basename, raw_shard("web", 0, kLengths, {}));
  ShardStore store({files}, 0);
  expect_tokens(*store.get({0, 0}), "web", 0, kLengths);
}

TEST(ShardFiles, AMissingShardIsASystemErrorThatNamesIt) {
  const TemporaryDirectory directory;
  StreamFiles files = write_stream(directory, "web", {kLengths}, {});
  std::filesystem::remove(files.directory + "/" + files.shards[0].raw_basename);
  ShardStore store({files}, 0);
  try {
    store.get({0, 0});
    FAIL();
  } catch (const SystemError& error) {
    EXPECT_EQ(error.code, ENOENT);
    EXPECT_EQ(error.path, files.directory + "/" + files.shards[0].raw_basename);
  }
}

TEST(ShardFiles, ATokenTotalThatTheShardDoesNotHaveIsRefused) {
  const TemporaryDirectory directory;
  StreamFiles files = write_stream(directory, "web", {kLengths}, {});
  files.shards[0].tokens = 821;
  ShardStore store({files}, 0);
  EXPECT_THROW(store.get({0, 0}), CorruptShardError);
  files.shards[0].tokens = 822;
  ShardStore right({files}, 0);
  EXPECT_EQ(right.get({0, 0})->num_tokens(), 822U);
}

}  // namespace
}  // namespace stoker
