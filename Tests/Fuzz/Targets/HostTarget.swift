// SPDX-License-Identifier: Apache-2.0

import HostUSB
import USB

/// What a guest asks of a device of the host, and where it goes.
enum HostTarget: FuzzTarget {
    static let name = "host"

    static func run(_ input: inout FuzzInput) throws {
        while !input.isAtEnd {
            let setup = SetupPacket(wire: input.integer())
            try require(setup.wire == SetupPacket(wire: setup.wire).wire, "a setup packet changes")
            try check(setup, RequestRoute(setup))
        }
    }

    /// Whatever the guest writes, what concerns the host's own view of the device does not reach the
    /// device behind its kernel's back.
    private static func check(_ setup: SetupPacket, _ route: RequestRoute) throws {
        guard setup.kind == .standard else {
            return try require(route == .forward, "\(setup) is not the device's own: \(route)")
        }
        switch setup.request {
        case 5, 9, 11:
            try require(route != .forward, "\(setup) goes to the device as it is")
        case 1 where setup.recipient == .endpoint && setup.value == 0 && setup.index & 0xf != 0:
            try require(route != .forward, "\(setup) goes to the device as it is")
        default: break
        }
        if setup.direction == .in, case .operate = route {
            throw Violation("\(setup) reads and changes the device")
        }
    }
}
