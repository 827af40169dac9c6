// SPDX-License-Identifier: Apache-2.0

import Foundation
import Platform
import TestKit
import Testing

@testable import HostUSB

/// The lock on a device's node.
struct DeviceNodeLockTests {
    @Test func `a node is locked once, until the lock is released`() throws {
        let folder = try TemporaryFolder()
        let path = folder.file("node")
        try Data().write(to: folder.url("node"))
        var lock: DeviceNodeLock? = try DeviceNodeLock(node: path)
        // The error may also name a process that another test has just forked with the node open.
        func isLocked(_ body: () throws -> Void) -> Bool {
            holdsEventually {
                do { try body() } catch OpeningError.locked(by: []) { return true } catch {}
                return false
            }
        }
        #expect(isLocked { _ = try DeviceNodeLock(node: path) })
        let other = try SystemFiles.openNode(path)
        #expect(isLocked { try DeviceNodeLock.lock(other.rawValue, of: path) })
        _ = lock
        lock = nil
        try eventually { try DeviceNodeLock.lock(other.rawValue, of: path) }
        #expect(isLocked { _ = try DeviceNodeLock(node: path) })
    }

    @Test func `a missing node is no device`() {
        #expect(throws: OpeningError.failed(.noDevice)) {
            try DeviceNodeLock(node: "/dev/bus/usb/250/127")
        }
    }
}
