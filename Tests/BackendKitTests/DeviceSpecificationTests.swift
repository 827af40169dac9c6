// SPDX-License-Identifier: Apache-2.0

import BackendKit
import Testing

/// Device specifications: their parsing, and the errors of those that are wrong.
struct DeviceSpecificationTests {
    @Test func `a specification has a scheme and parameters`() throws {
        let specification = try DeviceSpecification(parsing: "storage:file=a.img,readonly,serial=7")
        #expect(specification.scheme == "storage")
        #expect(specification.parameters.map(\.name) == ["file", "readonly", "serial"])
        #expect(try specification.value(of: "file") == "a.img")
        #expect(try specification.flag("readonly") == true)
        #expect(try specification.value(of: "vendor") == nil)
        #expect(try specification.flag("removable") == nil)
    }

    @Test("a backend without parameters needs no colon", arguments: ["loop", "loop:"])
    func bare(text: String) throws {
        let specification = try DeviceSpecification(parsing: text)
        #expect(specification.scheme == "loop")
        #expect(specification.parameters.isEmpty)
    }

    @Test(
        "a doubled comma is a comma of the value",
        arguments: [
            ("a,,b.img", "a,b.img"), (",,", ","), ("x,,,,y", "x,,y"), ("end,,", "end,"),
        ])
    func commas(written: String, meant: String) throws {
        let specification = try DeviceSpecification(parsing: "storage:file=\(written),readonly")
        #expect(try specification.value(of: "file") == meant)
        #expect(try specification.flag("readonly") == true)
    }

    @Test func `a value may contain equals signs, colons and spaces`() throws {
        let specification = try DeviceSpecification(parsing: "storage:file=/a=b:c d.img")
        #expect(try specification.value(of: "file") == "/a=b:c d.img")
    }

    @Test(
        "a malformed specification is refused",
        arguments: [
            "", ":", ":file=x", "Storage:file=x", "a b", "stor/age:x=1", "storage:=x",
            "storage:file=a,", "storage:file=a,,,b=", "storage:file=a,file=b", "/dev/sda",
            "stick.img",
        ])
    func malformed(text: String) {
        #expect(throws: BackendError.self) {
            let specification = try DeviceSpecification(parsing: text)
            // A name without an equals sign is a flag, which only value(of:) refuses.
            for parameter in specification.parameters {
                _ = try specification.value(of: parameter.name)
            }
        }
    }

    @Test("flags are on or off", arguments: [("=on", true), ("", true), ("=off", false)])
    func flags(suffix: String, value: Bool) throws {
        let specification = try DeviceSpecification(parsing: "storage:removable\(suffix)")
        #expect(try specification.flag("removable") == value)
    }

    @Test("a flag that is neither on nor off is refused", arguments: ["maybe", "2", "ON", ""])
    func wrongFlag(value: String) throws {
        let specification = try DeviceSpecification(parsing: "storage:removable=\(value)")
        #expect(throws: BackendError.self) { try specification.flag("removable") }
    }

    @Test("numbers are decimal or hexadecimal", arguments: [("12", 12), ("0x1f", 31), ("1", 1)])
    func numbers(written: String, value: UInt8) throws {
        let specification = try DeviceSpecification(parsing: "host:bus=\(written)")
        #expect(try specification.number("bus", in: 1...31) == value)
    }

    @Test(
        "numbers outside their range are refused",
        arguments: ["0", "32", "256", "-1", "0x", "1.0", "one", "99999999999999999999"])
    func wrongNumber(written: String) throws {
        let specification = try DeviceSpecification(parsing: "host:bus=\(written)")
        #expect(throws: BackendError.self) { try specification.number("bus", in: 1...UInt8(31)) }
    }

    private enum Speed: String, CaseIterable { case high, `super` }

    @Test func `a choice is one of its words, and the error names them`() throws {
        let right = try DeviceSpecification(parsing: "storage:speed=super")
        #expect(try right.choice("speed", of: Speed.self) == .super)
        let wrong = try DeviceSpecification(parsing: "storage:speed=warp")
        let error = #expect(throws: BackendError.self) {
            try wrong.choice("speed", of: Speed.self)
        }
        #expect(error?.reason.contains("high, super") == true)
    }
}
