// SPDX-License-Identifier: Apache-2.0

import Testing
import VMKit

extension Tag {
    /// A test of the built program with a real VMM and a real kernel.
    @Tag static var endToEnd: Tag
}

/// Tests in which real kernels use usbvfiod through a real VMM, one after the other.
///
/// They need the test bed and are skipped without it. They run in parallel with ``NestedVMTests``:
/// a guest on an emulated processor keeps one processor busy, and machines have at least two.
@Suite(.serialized, .tags(.endToEnd), .enabled(if: Bed.isReady, Bed.absence))
enum VMTests {}

/// Tests in which a guest is a host with USB devices and runs guests of its own.
@Suite(
    .serialized, .tags(.endToEnd), .enabled(if: Bed.isReady, Bed.absence),
    .enabled(if: Bed.nests, Bed.nestingAbsence))
enum NestedVMTests {}

extension Shell {
    /// Fails the test if the kernel log has errors of USB or the disk, and shows their lines.
    func expectNoComplaints(
        besides expected: String? = nil, sourceLocation: SourceLocation = #_sourceLocation
    ) throws {
        let complaints = try complaints().filter { line in
            expected.map { !line.contains($0) } ?? true
        }
        #expect(complaints == [], sourceLocation: sourceLocation)
    }
}
