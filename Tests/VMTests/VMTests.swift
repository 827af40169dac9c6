// SPDX-License-Identifier: Apache-2.0

import Testing
import VMKit

extension Tag {
    /// A test of the built program in the world it is made for.
    @Tag static var endToEnd: Tag
}

/// Tests in which real kernels use usbvfiod through a real VMM, one after the other.
///
/// They need the test bed; without it they are skipped, and say so. They run beside ``NestedVMTests``:
/// a guest on a software processor keeps one processor busy, and two are on every machine.
@Suite(.serialized, .tags(.endToEnd), .enabled(if: Bed.isReady, Bed.absence))
enum VMTests {}

/// Tests in which a guest is a host with USB devices, and has guests of its own.
@Suite(
    .serialized, .tags(.endToEnd), .enabled(if: Bed.isReady, Bed.absence),
    .enabled(if: Bed.nests, Bed.nestingAbsence))
enum NestedVMTests {}

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
