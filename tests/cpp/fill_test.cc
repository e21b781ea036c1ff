#include "fill/fill.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <limits>

#include "base/error.h"
#include "fill/widen.h"
#include "mds_files.h"
#include "shard/shard_store.h"

namespace stoker {
namespace {

using namespace testing_files;
using Row = std::vector<int64_t>;

constexpr FieldFormat kAllFields[] = {{Field::kInputIds},    {Field::kLabels},     {Field::kAttentionMask},
                                      {Field::kPositionIds}, {Field::kSequenceId}, {Field::kStreamIds}};

/// All values of a field of a filled batch, by row.
std::vector<Row> rows_of(const BatchFormat& format, Field field, const std::byte* buffer) {
  for (const FieldFormat& in_buffer : format.fields) {
    if (in_buffer.field == field) {
      std::vector<Row> rows(format.num_rows);
      for (size_t i = 0; i < size_t{format.num_rows} * format.seq_len; ++i)
        with_integer(in_buffer.type, [&]<typename Integer>(Integer value) {
          std::memcpy(&value, buffer + i * sizeof(value), sizeof(value));
          rows[i / format.seq_len].push_back(static_cast<int64_t>(value));
        });
      return rows;
    }
    buffer += format.field_bytes(in_buffer);
  }
  return {};
}

/// A plan of rows over two streams of one shard each.
BatchPlan make_plan(ShardStore& store, const std::vector<std::vector<Segment>>& rows, BatchFormat& format) {
  BatchPlan plan(2);
  plan.shards = {store.get({0, 0}), store.get({1, 0})};
  for (const auto& row : rows) {
    for (const Segment& segment : row) {
      plan.rows.add(segment);
      plan.segment_shards.push_back(segment.stream);
    }
    plan.rows.end_row();
  }
  plan.segment_loss.resize(plan.segment_shards.size());
  format.num_rows = plan.rows.size();
  return plan;
}

/// Two streams of one raw shard each, and rows of segments over them.
class FillTest : public testing::Test {
 protected:
  FillTest()
      : store_({write_stream(directory_, "code", {{4, 0, 6}}, {}), write_stream(directory_, "web", {{5}}, {})}, 0) {
    format_.fields.assign(std::begin(kAllFields), std::end(kAllFields));
    format_.seq_len = 8;
    format_.pad_id = 9;
  }

  BatchPlan plan(const std::vector<std::vector<Segment>>& rows) { return make_plan(store_, rows, format_); }

  std::vector<std::vector<Row>> fill(BatchPlan batch) {  // [field][row]
    std::vector<std::byte> buffer(format_.size_bytes());
    fill_rows(format_, batch, 0, format_.num_rows, buffer.data());
    std::vector<std::vector<Row>> out;
    for (const FieldFormat& field : format_.fields) out.push_back(rows_of(format_, field.field, buffer.data()));
    return out;
  }

  static int64_t code(uint32_t sample, uint32_t i) { return token_at("code", 0, sample, i); }
  static int64_t web(uint32_t i) { return token_at("web", 0, 0, i); }

  TemporaryDirectory directory_;
  ShardStore store_;
  BatchFormat format_;
};

TEST_F(FillTest, FieldsHoldTokensDocumentsAndStreams) {
  const auto got = fill(plan({{{0, 0, 0, 1, 4}, {1, 0, 0, 0, 2}}, {}}));
  const int64_t ids[] = {code(0, 1), code(0, 2), code(0, 3), web(0), web(1)};
  EXPECT_EQ(got[0][0], (Row{ids[0], ids[1], ids[2], ids[3], ids[4], 9, 9, 9}));
  EXPECT_EQ(got[1][0], (Row{ids[0], ids[1], ids[2], ids[3], ids[4], -100, -100, -100}));
  EXPECT_EQ(got[2][0], (Row{1, 1, 1, 1, 1, 0, 0, 0}));
  EXPECT_EQ(got[3][0], (Row{0, 1, 2, 0, 1, 0, 0, 0}));
  EXPECT_EQ(got[4][0], (Row{0, 0, 0, 1, 1, -1, -1, -1}));
  EXPECT_EQ(got[5][0], (Row{0, 0, 0, 1, 1, -1, -1, -1}));
  EXPECT_EQ(got[0][1], Row(8, 9));
  EXPECT_EQ(got[1][1], Row(8, -100));
  EXPECT_EQ(got[2][1], Row(8, 0));
}

TEST_F(FillTest, PaddingOnTheLeftMovesEverythingRight) {
  format_.pad_left = true;
  const auto got = fill(plan({{{1, 0, 0, 0, 5}}}));
  EXPECT_EQ(got[0][0], (Row{9, 9, 9, web(0), web(1), web(2), web(3), web(4)}));
  EXPECT_EQ(got[3][0], (Row{0, 0, 0, 0, 1, 2, 3, 4}));
  EXPECT_EQ(got[4][0], (Row{-1, -1, -1, 0, 0, 0, 0, 0}));
}

TEST_F(FillTest, Int32HoldsTheSame) {
  const BatchPlan batch = plan({{{0, 0, 2, 0, 6}}, {{1, 0, 0, 2, 5}}});
  const auto wide = fill(batch);
  for (FieldFormat& field : format_.fields) field.type = IntegerType::kI32;
  EXPECT_EQ(fill(batch), wide);
}

TEST_F(FillTest, EveryFieldMayHaveATypeOfItsOwn) {
  const BatchPlan batch = plan({{{0, 0, 2, 0, 6}}, {{1, 0, 0, 2, 5}}, {}});
  auto wide = fill(batch);
  const IntegerType types[] = {IntegerType::kU16, IntegerType::kI32, IntegerType::kU8,
                               IntegerType::kI16, IntegerType::kI16, IntegerType::kI8};
  for (size_t i = 0; i < format_.fields.size(); ++i) format_.fields[i].type = types[i];
  EXPECT_EQ(format_.fields_bytes(), 7U * BatchFormat::kAlignment);  // 96 bytes of labels
  EXPECT_EQ(fill(batch), wide);
  format_.fields[1].type = IntegerType::kU16;
  for (Row& row : wide[1]) std::replace(row.begin(), row.end(), int64_t{-100}, int64_t{65436});
  EXPECT_EQ(fill(batch), wide);
  format_.fields[1] = {Field::kLossMask, IntegerType::kU8};
  for (Row& row : wide[1]) std::transform(row.begin(), row.end(), row.begin(), [](int64_t v) { return v != 65436; });
  EXPECT_EQ(fill(batch), wide);
}

TEST_F(FillTest, AnEmptySampleIsNoDocument) {
  const auto got = fill(plan({{{0, 0, 1, 0, 0}, {1, 0, 0, 0, 5}}, {{0, 0, 1, 0, 0}}}));
  EXPECT_EQ(got[4][0], (Row{0, 0, 0, 0, 0, -1, -1, -1}));
  EXPECT_EQ(got[0][1], Row(8, 9));
}

TEST_F(FillTest, DocumentsEndAtEosAndBeginAtBos) {
  const BatchPlan batch = plan({{{0, 0, 2, 0, 6}, {1, 0, 0, 0, 1}}});
  format_.documents = BatchFormat::Documents::kEos;
  format_.document_tokens = {code(2, 2), code(2, 2)};
  auto got = fill(batch);
  EXPECT_EQ(got[4][0], (Row{0, 0, 0, 1, 1, 1, 1, -1}));
  EXPECT_EQ(got[3][0], (Row{0, 1, 2, 0, 1, 2, 3, 0}));
  format_.documents = BatchFormat::Documents::kBos;
  got = fill(batch);
  EXPECT_EQ(got[4][0], (Row{0, 0, 1, 1, 1, 1, 1, -1}));
  EXPECT_EQ(got[3][0], (Row{0, 1, 0, 1, 2, 3, 4, 0}));
  format_.document_tokens = {code(2, 0), code(2, 0)};  // the row's first token begins document 0 in any case
  EXPECT_EQ(fill(batch)[4][0], (Row{0, 0, 0, 0, 0, 0, 0, -1}));
}

TEST_F(FillTest, DocumentTokensAreCountedOverPaddingToo) {
  const BatchPlan batch = plan({{{0, 0, 2, 0, 6}}, {}});
  format_.counts_padding = true;
  format_.pad_id = code(2, 2);
  format_.document_tokens = {code(2, 2), -1};
  format_.documents = BatchFormat::Documents::kEos;
  EXPECT_EQ(fill(batch)[4][0], (Row{0, 0, 0, 1, 1, 1, 1, 2}));
  format_.documents = BatchFormat::Documents::kBos;
  EXPECT_EQ(fill(batch)[4][0], (Row{0, 0, 1, 1, 1, 1, 2, 3}));
  format_.pad_left = true;
  EXPECT_EQ(fill(batch)[4][0], (Row{1, 2, 2, 2, 3, 3, 3, 3}));
  format_.document_tokens = {-1, -1};  // documents are samples: there is nothing to count
  EXPECT_EQ(fill(batch)[4][0], (Row{-1, -1, 0, 0, 0, 0, 0, 0}));
  format_.documents = BatchFormat::Documents::kSamples;
  format_.document_tokens = {};
  EXPECT_EQ(fill(batch)[4][0], (Row{-1, -1, 0, 0, 0, 0, 0, 0}));
}

TEST_F(FillTest, ATokenBeyondTheVocabularyIsAnErrorThatNamesItsSample) {
  const BatchPlan batch = plan({{{1, 0, 0, 0, 5}}});
  format_.vocab_size = 50000;
  EXPECT_NO_THROW(fill(batch));
  uint64_t largest = 0;
  for (uint32_t i = 0; i < 5; ++i) largest = std::max<uint64_t>(largest, static_cast<uint64_t>(web(i)));
  format_.vocab_size = largest;
  try {
    fill(batch);
    FAIL();
  } catch (const CorruptShardError& error) {
    EXPECT_EQ(error.sample, 0);
    EXPECT_NE(std::string(error.what()).find("stream \"web\""), std::string::npos);
    EXPECT_NE(std::string(error.what()).find(std::to_string(largest)), std::string::npos);
  }
}

TEST_F(FillTest, ATokenThatTheTypeCannotHoldIsAnErrorWhateverTheVocabulary) {
  StreamFiles files = write_stream(directory_, "wide", {{2}}, {});
  files.schemas[0].columns[0].type = IntegerType::kU32;  // two uint16 tokens read as one of 32 bits
  files.schemas[0].columns[0].encoding = Column::Encoding::kBytes;
  const std::string path = files.directory + "/" + files.shards[0].raw_basename;
  Bytes bytes = read_file(path);
  bytes.resize(bytes.size() - 2 - 4);  // the header and the values
  for (const int byte : {0xFF, 0xFF, 0xFF, 0xFF}) bytes.push_back(std::byte(byte));
  const auto size = static_cast<uint32_t>(bytes.size());
  std::memcpy(bytes.data() + 8, &size, 4);
  const uint32_t values = 4;
  std::memcpy(bytes.data() + bytes.size() - 8, &values, 4);
  write_file(path, bytes);
  files.shards[0].raw_bytes = bytes.size();
  ShardStore store({files, write_stream(directory_, "other", {{5}}, {})}, 0);
  BatchPlan batch = plan({{{0, 0, 0, 0, 1}}});
  batch.shards[0] = store.get({0, 0});
  EXPECT_EQ(fill(batch)[0][0][0], 4294967295);
  format_.vocab_size = uint64_t{1} << 33;
  for (const IntegerType type : {IntegerType::kI32, IntegerType::kU16}) {
    format_.fields[0].type = type;
    EXPECT_THROW(fill(batch), CorruptShardError);
  }
}

TEST_F(FillTest, AShardThatIsCutWhileItIsOpenIsAnErrorAndItIsOpenedAnew) {
  const ShardLengths lengths(5, 4000);
  ShardStore store({write_stream(directory_, "big", {lengths}, {}), write_stream(directory_, "web", {{5}}, {})}, 0);
  BatchPlan batch = plan({{{0, 0, 4, 0, 8}}});
  const std::shared_ptr<const Shard> shard = store.get({0, 0});
  batch.shards[0] = shard;
  std::filesystem::resize_file(shard->path(), 4096);
  try {
    fill(batch);
    FAIL();
  } catch (const CorruptShardError& error) {
    EXPECT_NE(std::string(error.what()).find("was cut"), std::string::npos) << error.what();
  }
  EXPECT_TRUE(shard->is_retired());
  EXPECT_THROW(store.get({0, 0}), CorruptShardError);  // opened again: its size is wrong now
}

/// Streams with and without labels, packed.
class PackedFillTest : public testing::Test {
 protected:
  PackedFillTest()
      : store_({write_stream(directory_, "chat", {{9, 0, 6, 3, 5}}, {.labels = true}),
                write_stream(directory_, "web", {{5}}, {})},
               0) {
    format_.fields.assign(std::begin(kAllFields), std::end(kAllFields));
    format_.seq_len = 16;
    format_.pad_id = 9;
    format_.is_packed = true;
  }

  BatchPlan plan(const std::vector<std::vector<Segment>>& rows) { return make_plan(store_, rows, format_); }

  /// A field of a row, once the batch is filled.
  Row row_of(Field field, uint32_t row) const { return rows_of(format_, field, buffer_.data())[row]; }
  uint32_t fill(BatchPlan& batch) {
    buffer_.assign(format_.size_bytes(), std::byte{0xAA});
    fill_rows(format_, batch, 0, format_.num_rows, buffer_.data());
    return finish_batch(format_, batch, buffer_.data());
  }
  std::vector<int32_t> cu_seqlens() const {
    const auto* at = reinterpret_cast<const int32_t*>(buffer_.data() + format_.fields_bytes());
    return {at, at + format_.cu_seqlens_capacity + 1};
  }
  static int64_t chat(uint32_t sample, uint32_t i) { return token_at("chat", 0, sample, i); }

  TemporaryDirectory directory_;
  ShardStore store_;
  BatchFormat format_;
  std::vector<std::byte> buffer_;
};

TEST_F(PackedFillTest, LabelsAreTheShardsButForTheFirstTokenOfAllButTheFirstSegment) {
  BatchPlan batch = plan({{{0, 0, 2, 2, 6}, {1, 0, 0, 0, 5}, {0, 0, 3, 0, 3}}, {{0, 0, 4, 0, 5}}});
  fill(batch);
  const auto web = [](uint32_t i) { return int64_t{token_at("web", 0, 0, i)}; };
  EXPECT_EQ(row_of(Field::kLabels, 0), (Row{chat(2, 2), chat(2, 3), chat(2, 4), chat(2, 5), -100, web(1), web(2),
                                            web(3), web(4), -100, chat(3, 1), chat(3, 2), -100, -100, -100, -100}));
  EXPECT_EQ(row_of(Field::kLabels, 1), Row(16, -100));
  const auto& counts = batch.rows.counts();
  EXPECT_EQ(counts[0].loss_tokens, 3U + 2U);  // the row's first label is not predicted
  EXPECT_EQ(counts[1].loss_tokens, 4U);
  EXPECT_EQ(counts[0].no_loss_samples, 1U);
}

TEST_F(PackedFillTest, TokensLikeThePaddingAreNoLabelsOfTextWhereTheFormatSaysSo) {
  const auto web = [](uint32_t i) { return int64_t{token_at("web", 0, 0, i)}; };
  format_.ignores_pad_id = true;
  format_.is_packed = false;
  for (const IntegerType type : {IntegerType::kI64, IntegerType::kI32}) {
    for (FieldFormat& field : format_.fields) field.type = type;
    format_.pad_id = web(2);
    BatchPlan batch = plan({{{1, 0, 0, 0, 5}, {0, 0, 2, 2, 6}}, {{1, 0, 0, 2, 4}}});
    fill(batch);
    EXPECT_EQ(row_of(Field::kLabels, 0), (Row{web(0), web(1), -100, web(3), web(4), chat(2, 2), chat(2, 3), chat(2, 4),
                                              chat(2, 5), -100, -100, -100, -100, -100, -100, -100}));
    EXPECT_EQ(row_of(Field::kLabels, 1),
              (Row{-100, web(3), -100, -100, -100, -100, -100, -100, -100, -100, -100, -100, -100, -100, -100, -100}));
    EXPECT_EQ(row_of(Field::kAttentionMask, 0), (Row{1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0}));
    EXPECT_EQ(batch.row_tokens, (std::vector<uint32_t>{9, 2}));
    EXPECT_EQ(batch.row_loss, (std::vector<uint32_t>{7, 1}));
  }
  format_.fields[1].field = Field::kLossMask;
  BatchPlan batch = plan({{{1, 0, 0, 0, 5}}});
  fill(batch);
  EXPECT_EQ(row_of(Field::kLossMask, 0), (Row{1, 1, 0, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}));
}

TEST_F(PackedFillTest, ASampleMayHaveToHaveLossLeft) {
  format_.needs_loss = true;
  BatchPlan whole = plan({{{0, 0, 4, 0, 5}}});
  EXPECT_NO_THROW(fill(whole));  // sample 4 has no label at all, and was not cut
  BatchPlan right = plan({{{0, 0, 2, 0, 3}}});
  EXPECT_NO_THROW(fill(right));  // its third label is left
  BatchPlan cut = plan({{{0, 0, 2, 0, 2}}});
  try {
    fill(cut);
    FAIL();
  } catch (const ArgumentError& error) {
    EXPECT_EQ(std::string(error.what())
                  .find("Truncating to max_seq_len=16 has removed all loss-generating tokens. "
                        "Pre-truncation sequence length was 6."),
              0U);
  }
}

TEST_F(PackedFillTest, CompactLabelsAreTheSame) {
  const auto make = [&] { return plan({{{0, 0, 2, 0, 6}, {1, 0, 0, 0, 5}}, {{0, 0, 4, 0, 5}}}); };
  BatchPlan batch = make();
  fill(batch);
  const auto row = [&] { return row_of(Field::kLabels, 0); };
  Row want = row();
  format_.fields = {{Field::kInputIds, IntegerType::kU16}, {Field::kLabels, IntegerType::kI32}};
  fill(batch = make());
  EXPECT_EQ(row(), want);
  format_.fields[1].type = IntegerType::kU16;
  fill(batch = make());
  std::replace(want.begin(), want.end(), int64_t{-100}, int64_t{65436});
  EXPECT_EQ(row(), want);
  format_.fields = {{Field::kInputIds, IntegerType::kU16}, {Field::kLossMask, IntegerType::kU8}};
  fill(batch = plan({{{1, 0, 0, 0, 5}, {1, 0, 0, 0, 4}}}));
  EXPECT_EQ(row_of(Field::kLossMask, 0), (Row{1, 1, 1, 1, 1, 0, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0}));
}

TEST_F(PackedFillTest, LossIsCountedWithoutTheFieldToo) {
  format_.fields = {{Field::kInputIds}};
  BatchPlan batch = plan({{{0, 0, 0, 0, 9}, {0, 0, 2, 0, 6}}});
  fill(batch);
  EXPECT_EQ(batch.rows.counts()[0].loss_tokens, 6U + 4U);
}

TEST_F(PackedFillTest, SegmentsArePaddedToAMultipleAndCuSeqlensEndThere) {
  format_.pad_to_multiple = 4;
  format_.cu_seqlens_capacity = 6;
  BatchPlan batch = plan({{{1, 0, 0, 0, 5}, {0, 0, 3, 0, 3}}, {}});
  EXPECT_EQ(fill(batch), 16U);  // the row of padding
  EXPECT_EQ(row_of(Field::kSequenceId, 0), (Row{0, 0, 0, 0, 0, -1, -1, -1, 1, 1, 1, -1, -1, -1, -1, -1}));
  EXPECT_EQ(row_of(Field::kPositionIds, 0), (Row{0, 1, 2, 3, 4, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 0}));
  EXPECT_EQ(cu_seqlens(), (std::vector<int32_t>{0, 8, 12, 16, 32, 32, 32}));
  format_.pad_left = true;
  fill(batch);
  EXPECT_EQ(row_of(Field::kSequenceId, 0), (Row{-1, -1, -1, -1, 0, 0, 0, 0, 0, -1, -1, -1, 1, 1, 1, -1}));
  EXPECT_EQ(cu_seqlens(), (std::vector<int32_t>{0, 4, 12, 16, 32, 32, 32}));
  format_.cu_seqlens_capacity = 3;
  EXPECT_THROW(fill(batch), ArgumentError);
}

TEST_F(PackedFillTest, ALabelThatIsNoTokenIdIsAnError) {
  BatchPlan batch = plan({{{0, 0, 2, 0, 6}}});
  uint64_t largest = 0;
  for (uint32_t i = 0; i < 6; ++i) largest = std::max<uint64_t>(largest, static_cast<uint64_t>(chat(2, i)));
  format_.vocab_size = largest + 1;
  EXPECT_NO_THROW(fill(batch));  // -100 is none, and no error
  StreamFiles files = write_stream(directory_, "unsigned", {{9, 0, 6}}, {.labels = true});
  files.schemas[0].columns[1].type = IntegerType::kU32;  // -100 is a number like others there
  ShardStore store({files, write_stream(directory_, "other", {{5}}, {})}, 0);
  batch.shards[0] = store.get({0, 0});
  format_.vocab_size = 65536;
  try {
    fill(batch);
    FAIL();
  } catch (const CorruptShardError& error) {
    EXPECT_NE(std::string(error.what()).find("has 4294967196 among its labels"), std::string::npos) << error.what();
  }
}

template <typename Label>
void expect_labels(IntegerType type, const std::vector<Label>& values, uint64_t largest, uint32_t num_ignored) {
  std::vector<std::byte> unaligned(1 + values.size() * sizeof(Label));
  std::memcpy(unaligned.data() + 1, values.data(), values.size() * sizeof(Label));
  const TokenArray source{type, static_cast<uint32_t>(values.size()), unaligned.data() + 1};
  std::vector<int64_t> labels(values.size());
  const LabelCounts counts = widen_labels(source, 0, source.size, labels.data());
  EXPECT_EQ(counts.largest, largest);
  EXPECT_EQ(counts.num_ignored, num_ignored);
  for (uint32_t i = 0; i < source.size; ++i) {
    EXPECT_EQ(labels[i], static_cast<int64_t>(values[i]));
    EXPECT_EQ(value_at(source, i), labels[i]);
  }
  EXPECT_EQ(widen_labels<int64_t>(source, 0, source.size, nullptr).num_ignored, num_ignored);
}

TEST(CountEqual, CountsInEveryIntegerType) {
  const std::vector<int8_t> values = {5, -1, 5, 127, -1, -1};
  std::vector<std::byte> bytes(1 + values.size());
  std::memcpy(bytes.data() + 1, values.data(), values.size());
  const TokenArray signed_source{IntegerType::kI8, 6, bytes.data() + 1};
  EXPECT_EQ(count_equal(signed_source, 0, 6, 5), 2U);
  EXPECT_EQ(count_equal(signed_source, 1, 4, 5), 1U);
  EXPECT_EQ(count_equal(signed_source, 0, 6, -1), 3U);
  EXPECT_EQ(count_equal(signed_source, 0, 6, 255), 0U);
  const TokenArray unsigned_source{IntegerType::kU8, 6, bytes.data() + 1};
  EXPECT_EQ(count_equal(unsigned_source, 0, 6, 255), 3U);
  EXPECT_EQ(count_equal(unsigned_source, 0, 6, -1), 0U);
  EXPECT_EQ(count_equal(unsigned_source, 0, 6, 256 + 5), 0U);
}

TEST(WidenLabels, CopiesEveryIntegerTypeAndCountsWhatIsIgnored) {
  expect_labels<int8_t>(IntegerType::kI8, {-100, 5, -100, 127}, 127, 2);
  expect_labels<int16_t>(IntegerType::kI16, {-100, 5, -1}, UINT64_MAX, 1);
  expect_labels<int32_t>(IntegerType::kI32, {-100, -100}, 0, 2);
  expect_labels<int64_t>(IntegerType::kI64, {7, int64_t{1} << 40, -100}, uint64_t{1} << 40, 1);
  expect_labels<uint8_t>(IntegerType::kU8, {156, 3}, 156, 0);  // the byte of -100 is a number here
  expect_labels<uint16_t>(IntegerType::kU16, {65436, 3}, 65436, 0);
  expect_labels<uint32_t>(IntegerType::kU32, {4, 3}, 4, 0);
  expect_labels<uint64_t>(IntegerType::kU64, {4, 3}, 4, 0);
}

template <typename Token>
void expect_widened(IntegerType type, const std::vector<Token>& values, uint64_t limit, uint64_t largest) {
  std::vector<std::byte> unaligned(1 + values.size() * sizeof(Token));
  std::memcpy(unaligned.data() + 1, values.data(), values.size() * sizeof(Token));
  const TokenArray source{type, static_cast<uint32_t>(values.size()), unaligned.data() + 1};
  std::vector<int64_t> ids(values.size());
  std::vector<int64_t> labels(values.size());
  EXPECT_EQ(widen(source, 0, source.size, limit, ids.data(), labels.data()), largest);
  for (size_t i = 0; i < values.size(); ++i) EXPECT_EQ(ids[i], static_cast<int64_t>(values[i]));
  EXPECT_EQ(ids, labels);
  std::vector<int64_t> tail(values.size() - 1);
  widen<int64_t>(source, 1, source.size - 1, limit, tail.data(), nullptr);
  EXPECT_EQ(tail, std::vector<int64_t>(ids.begin() + 1, ids.end()));
}

TEST(Widen, CopiesEveryIntegerTypeAndFindsItsLargestValue) {
  constexpr uint64_t kNone = UINT64_MAX;  // no limit: nothing is looked for in unsigned types
  expect_widened<uint8_t>(IntegerType::kU8, {1, 255, 3}, 100, 255);
  expect_widened<uint8_t>(IntegerType::kU8, {1, 255, 3}, kNone, 0);
  expect_widened<int8_t>(IntegerType::kI8, {1, 127, 3}, 100, 127);
  expect_widened<int8_t>(IntegerType::kI8, {1, -1, 3}, 100, UINT64_MAX);
  expect_widened<uint16_t>(IntegerType::kU16, {1, 65535, 3}, 50000, 65535);
  expect_widened<int16_t>(IntegerType::kI16, {7, -32768, 3}, 50000, UINT64_MAX);
  expect_widened<uint32_t>(IntegerType::kU32, {1, 4294967295, 3}, uint64_t{1} << 31, 4294967295);
  expect_widened<int32_t>(IntegerType::kI32, {5, 4, 2147483647}, kNone, 2147483647);
  expect_widened<int32_t>(IntegerType::kI32, {5, -100, 2147483647}, kNone, UINT64_MAX);
  expect_widened<uint64_t>(IntegerType::kU64, {5, uint64_t{1} << 63, 2}, uint64_t{1} << 63, uint64_t{1} << 63);
  expect_widened<int64_t>(IntegerType::kI64, {5, std::numeric_limits<int64_t>::min(), 2}, 10, UINT64_MAX);
}

}  // namespace
}  // namespace stoker
