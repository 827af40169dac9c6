// SPDX-License-Identifier: Apache-2.0

import Testing
import VMKit

extension Tag {
    /// A test of the built program in the world it is made for.
    @Tag static var endToEnd: Tag
}

/// Tests in which real kernels use usbvfiod through a real VMM, one after the other: two virtual
/// machines at once would make each other late.
///
/// They need the test bed; without it they are skipped, and say so.
@Suite(.serialized, .tags(.endToEnd), .enabled(if: Bed.isReady, Bed.absence))
enum VMTests {}

extension Shell {
    /// Fails the test if USB or the disk complained in the kernel's log, and says with what words.
    func expectNoComplaints(
        besides expected: String? = nil, sourceLocation: SourceLocation = #_sourceLocation
    ) throws {
        let complaints = try complaints().filter { line in
            expected.map { !line.contains($0) } ?? true
        }
        #expect(complaints == [], sourceLocation: sourceLocation)
    }
}
