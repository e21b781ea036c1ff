#include "base/fault_guard.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <csignal>
#include <thread>

#include "base/file.h"
#include "mds_files.h"

namespace stoker {
namespace {

using namespace testing_files;

class FaultGuardTest : public testing::Test {
 protected:
  void SetUp() override { write_file(path_, Bytes(3 * page_size_bytes(), std::byte{7})); }
  // volatile: the read must happen.
  static std::byte read(const MappedFile& file, size_t at) {
    return *const_cast<const volatile std::byte*>(file.bytes().data() + at);
  }
  void cut() { ASSERT_EQ(::truncate(path_.c_str(), static_cast<off_t>(page_size_bytes())), 0); }

  TemporaryDirectory directory_;
  std::string path_ = directory_ / "file";
};

TEST_F(FaultGuardTest, ReadingAWholeFileRaisesNoFlag) {
  const MappedFile file{File(path_)};
  const FaultGuard guard({&file});
  EXPECT_EQ(file.bytes().back(), std::byte{7});
  EXPECT_EQ(guard.faulted(), nullptr);
}

TEST_F(FaultGuardTest, AFileCutWhileItIsMappedRaisesTheFlagOfItsMapping) {
  const MappedFile other{File(path_)};
  const MappedFile file{File(path_)};
  cut();
  const FaultGuard guard({&other, &file});
  EXPECT_EQ(read(file, 0), std::byte{7});
  EXPECT_EQ(guard.faulted(), nullptr);
  EXPECT_EQ(read(file, 2 * page_size_bytes()), std::byte{0});
  EXPECT_EQ(guard.faulted(), &file);
  EXPECT_FALSE(other.faulted());
}

TEST_F(FaultGuardTest, AThreadThatReadsWhatAnotherHasLostSeesTheFlag) {
  const MappedFile file{File(path_)};
  cut();
  const FaultGuard guard({&file});
  std::thread([&] {
    const FaultGuard inner({&file});
    EXPECT_EQ(read(file, page_size_bytes()), std::byte{0});
    EXPECT_EQ(inner.faulted(), &file);
  }).join();
  EXPECT_EQ(read(file, page_size_bytes()), std::byte{0});  // zeros are there now: no fault
  EXPECT_EQ(guard.faulted(), &file);
}

TEST_F(FaultGuardTest, AnInnerGuardLeavesTheOuterOneInForce) {
  const MappedFile file{File(path_)};
  cut();
  const FaultGuard guard({&file});
  {
    const FaultGuard inner({});
  }
  read(file, page_size_bytes());
  EXPECT_EQ(guard.faulted(), &file);
}

TEST_F(FaultGuardTest, AFaultOutsideOfTheGuardedRangesEndsTheProcess) {
  testing::FLAGS_gtest_death_test_style = "threadsafe";
  EXPECT_EXIT(
      {
        std::signal(SIGBUS, SIG_DFL);
        const MappedFile file{File(path_)};
        const MappedFile guarded{File(path_)};
        cut();
        const FaultGuard guard({&guarded});
        read(file, page_size_bytes());
      },
      testing::KilledBySignal(SIGBUS), "");
}

TEST_F(FaultGuardTest, AHandlerThatWasThereBeforeGetsTheFaultsOfOthers) {
  testing::FLAGS_gtest_death_test_style = "threadsafe";
  EXPECT_EXIT(
      {
        std::signal(SIGBUS, [](int) { ::_exit(42); });
        const MappedFile file{File(path_)};
        cut();
        const FaultGuard guard({});
        read(file, page_size_bytes());
      },
      testing::ExitedWithCode(42), "");
}

}  // namespace
}  // namespace stoker
