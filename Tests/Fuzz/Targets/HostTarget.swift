// SPDX-License-Identifier: Apache-2.0

import BackendKit
import HostUSB
import USB

/// The parsers of untrusted input about devices of the host: a guest's control requests, a device's
/// descriptors, and an operator's rules.
enum HostTarget: FuzzTarget {
    static let name = "host"

    static func run(_ input: inout FuzzInput) throws {
        while !input.isAtEnd {
            switch input.number(0...3) {
            case 0, 1: try checkRequest(SetupPacket(wire: input.integer()))
            case 2: try checkDescriptors(input.bytes(atMost: 4096))
            default: try checkRule(String(decoding: input.bytes(atMost: 255), as: UTF8.self))
            }
        }
    }

    // MARK: - Requests

    /// Checks that no request that changes state of the host's kernel is forwarded to the device.
    private static func checkRequest(_ setup: SetupPacket) throws {
        let route = RequestRoute(setup)
        try require(setup.wire == SetupPacket(wire: setup.wire).wire, "a setup packet changes")
        guard setup.kind == .standard else {
            return try require(route == .forward, "\(setup) is not forwarded: \(route)")
        }
        switch setup.request {
        case 5, 9, 11:
            try require(route != .forward, "\(setup) is forwarded")
        case 1 where setup.recipient == .endpoint && setup.value == 0 && setup.index & 0xf != 0:
            try require(route != .forward, "\(setup) is forwarded")
        default: break
        }
        if setup.direction == .in, case .operate = route {
            throw Violation("\(setup) reads, and changes the device")
        }
    }

    // MARK: - Descriptors

    /// Checks that configurations are bounded, contain only interfaces in the bytes, and do not
    /// depend on bytes after them.
    private static func checkDescriptors(_ bytes: [UInt8]) throws {
        let configurations = ConfigurationDescriptor.all(in: bytes)
        try require(
            configurations.count <= USBLimits.configurations,
            "\(configurations.count) configurations")
        for configuration in configurations {
            let numbers = configuration.interfaceNumbers
            try require(numbers.count <= USBLimits.interfaces, "\(numbers.count) interfaces")
            for number in numbers {
                let isThere = zip(bytes, bytes.dropFirst()).enumerated().contains { offset, pair in
                    pair.0 >= 9 && pair.1 == 4 && offset + 2 < bytes.count
                        && bytes[offset + 2] == number
                }
                try require(isThere, "interface \(number) is in no descriptor")
            }
        }
        for length in [bytes.count / 2, bytes.count - 1] where length >= 0 {
            let part = ConfigurationDescriptor.all(in: Array(bytes.prefix(length)))
            try require(
                part.count <= configurations.count, "a prefix has more configurations")
            for (short, whole) in zip(part, configurations) {
                try require(
                    short.value == whole.value
                        && whole.interfaceNumbers.starts(with: short.interfaceNumbers),
                    "bytes after a configuration change it")
            }
        }
    }

    // MARK: - Rules

    /// Checks that the text of a rule is a specification of the same rule.
    private static func checkRule(_ text: String) throws {
        guard let specification = try? DeviceSpecification(parsing: "host:" + text) else { return }
        let rule: DeviceRule
        do throws(BackendError) {
            rule = try DeviceRule(specification)
        } catch {
            return try require(!error.reason.isEmpty, "a refusal without a reason: \(text)")
        }
        if case .port(let port) = rule {
            // The port becomes a part of a path.
            try require(
                port.utf8.allSatisfy { "0123456789-.".utf8.contains($0) } && port.contains("-")
                    && !port.contains(".."),
                "'\(port)' is no port")
        }
        guard let again = try? DeviceRule(DeviceSpecification(parsing: "\(rule)")) else {
            throw Violation("'\(rule)' is refused")
        }
        try require(again == rule, "'\(rule)' is another rule than '\(text)'")
    }
}
