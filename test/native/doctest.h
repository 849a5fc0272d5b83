// doctest, whose CHECK takes the place of ours: include this after every header
// of the code under test, which may use its own.
#pragma once

#include "base/check.h"

#undef CHECK
#include <doctest/doctest.h>
