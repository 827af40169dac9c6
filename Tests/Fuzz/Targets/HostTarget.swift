// SPDX-License-Identifier: Apache-2.0

import BackendKit
import HostUSB
import USB

/// What is read of the host's devices: what a guest asks of one and where it goes, what one says of
/// itself, and which one an operator means.
enum HostTarget: FuzzTarget {
    static let name = "host"

    static func run(_ input: inout FuzzInput) throws {
        while !input.isAtEnd {
            switch input.number(0...3) {
            case 0, 1: try checkRequest(SetupPacket(wire: input.integer()))
            case 2: try checkOutline(input.bytes(atMost: 4096))
            default: try checkRule(String(decoding: input.bytes(atMost: 255), as: UTF8.self))
            }
        }
    }

    // MARK: - Requests

    /// Whatever the guest writes, what concerns the host's own view of the device does not reach the
    /// device behind its kernel's back.
    private static func checkRequest(_ setup: SetupPacket) throws {
        let route = RequestRoute(setup)
        try require(setup.wire == SetupPacket(wire: setup.wire).wire, "a setup packet changes")
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

    // MARK: - Descriptors

    /// A device may say anything of itself: what is kept of it is bounded and unambiguous, was really
    /// said, and does not depend on what follows.
    private static func checkOutline(_ bytes: [UInt8]) throws {
        let outlines = ConfigurationOutline.all(in: bytes)
        try require(
            outlines.count <= ConfigurationOutline.mostConfigurations,
            "\(outlines.count) configurations")
        for outline in outlines {
            let numbers = outline.interfaces.map(\.number)
            try require(
                numbers.count <= ConfigurationOutline.mostInterfaces,
                "\(numbers.count) interfaces")
            try require(Set(numbers).count == numbers.count, "an interface is there twice")
            for number in numbers {
                let isThere = zip(bytes, bytes.dropFirst()).enumerated().contains { place, pair in
                    pair.0 >= 9 && pair.1 == 4 && place + 2 < bytes.count
                        && bytes[place + 2] == number
                }
                try require(isThere, "interface \(number) is in no descriptor")
            }
        }
        for length in [bytes.count / 2, bytes.count - 1] where length >= 0 {
            let part = ConfigurationOutline.all(in: Array(bytes.prefix(length)))
            try require(part.count <= outlines.count, "less of a device has more configurations")
            for (short, whole) in zip(part, outlines) {
                try require(
                    short.value == whole.value
                        && whole.interfaces.starts(with: short.interfaces),
                    "what follows changes what was said before")
            }
        }
    }

    // MARK: - Rules

    /// What is printed for an operator to write says what was meant.
    private static func checkRule(_ text: String) throws {
        guard let specification = try? DeviceSpecification(parsing: "host:" + text) else { return }
        let rule: DeviceRule
        do throws(BackendError) {
            rule = try DeviceRule(specification)
        } catch {
            return try require(!error.reason.isEmpty, "a refusal without a reason: \(text)")
        }
        if case .port(let port) = rule {
            // It becomes a part of a path.
            try require(
                port.utf8.allSatisfy { "0123456789-.".utf8.contains($0) } && port.contains("-")
                    && !port.contains(".."),
                "'\(port)' is no port")
        }
        guard let again = try? DeviceRule(DeviceSpecification(parsing: "\(rule)")) else {
            throw Violation("'\(rule)' is refused")
        }
        try require(again == rule, "'\(rule)' means another device than '\(text)'")
    }
}
